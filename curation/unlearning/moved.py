"""A model as it would be once it had learned some rows: what comes back of others with them can be held down beforehand.

One step of Adam goes about as far along every weight as along any other, so that one signed step stands for a few small ones.
The derivative of the step itself is left out (first order), so that it costs two passes in place of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from curation.unlearning.sequences import predict
from lorif_core.objectives import Batch


class Moved(nn.Module):
    """A model with other values of its parameters, which keep their gradients' way back to its own."""

    def __init__(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.values = model, dict(values)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model would give."""
        return torch.func.functional_call(self.model, self.values, args, kwargs)


def moved(model: nn.Module, learned: Batch, reach: float) -> Moved:
    """``model`` after a signed step of length ``reach`` down the mean loss of ``learned``, along every trained weight."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        loss = predict(model, learned).mean().mean()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    pairs = zip(trained.items(), gradients, strict=True)
    return Moved(model, {name: p if g is None else p - reach * g.sign() for (name, p), g in pairs})


def rows_of(batch: Batch, which: Tensor) -> Batch:
    """The rows of a batch where ``which`` [B] is true."""
    if isinstance(batch, Mapping):
        return {name: values[which] for name, values in batch.items()}
    return tuple(values[which] for values in batch)
