"""What a model makes of rows just before its last layer: vectors in which rows that it treats alike lie close together.

Axes: N rows, B rows of a batch, T tokens, D width of the last layer's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curation.errors import ModelError
from curation.models.evaluation import measuring


def embeddings(model: nn.Module, loader: Iterable[Any], device: str | torch.device = "cpu") -> np.ndarray:
    """The input of the last ``nn.Linear`` that is called, of a language model its mean over a row's tokens.

    Args:
        model: a classifier, or a language model; used in eval mode, without gradients; it stays on ``device``.
        loader: yields ``(inputs, codes)``, or questions (``curation.data.Questions``).
        device: where to run it.

    Returns:
        float32 [N, D], in the loader's order.

    Raises:
        ModelError: no ``nn.Linear`` sees one vector a row or a token.
        ValueError: the loader has no rows.
    """
    model.to(device)
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        last[:] = [inputs[0]]

    handles = [x.register_forward_pre_hook(keep) for x in model.modules() if isinstance(x, nn.Linear)]
    found = []
    try:
        with measuring(model):
            for batch in loader:
                last.clear()
                if isinstance(batch, Mapping):
                    mask = batch["attention_mask"].to(device)
                    model(batch["input_ids"].to(device), attention_mask=mask)
                else:
                    mask = None
                    model(batch[0].to(device))
                found.append(_vectors(model, last, mask).float().cpu().numpy())
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("embeddings: the loader has no rows")
    return np.concatenate(found)


def _vectors(model: nn.Module, last: list[Tensor], mask: Tensor | None) -> Tensor:
    """[B, D] of what the last layer was given, [B, D] or, with a mask [B, T], [B, T, D]."""
    if not last or last[0].ndim != (2 if mask is None else 3):
        seen = list(last[0].shape) if last else "none"
        raise ModelError(
            f"{type(model).__name__}: expected an nn.Linear that makes the logits of one vector a row or a token; got {seen}. "
            "Leave out repsim and what goes by embeddings"
        )
    if mask is None:
        return last[0]
    weights = mask.to(last[0].dtype) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, last[0])  # [B, T] x [B, T, D] -> [B, D]
