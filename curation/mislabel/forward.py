"""One pass over the training rows: what each layer that sees one vector a row was given, and the logits.

Axes: N training rows, B rows of a batch, T tokens of a row, d inputs of a layer, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curation.errors import ModelError, TrainingError
from curation.mislabel.checks import check_labels, require_finite

# Wider inputs are brought to this width by random signs, which keep distances to within a few per cent.
SKETCH_WIDTH = 512
SKETCH_SEED = 0


@dataclass(frozen=True)
class Forward:
    """What a model makes of every training row, in index order.

    Attributes:
        inputs: float32 [N, d_l], one array a layer, in the order the model calls them; the last one belongs to the
            classification head and is never sketched.
        logits: float32 [N, K].
        labels: int64 [N], the codes the loader gave.
        names: the layers' names, beside ``inputs``.
    """

    inputs: tuple[np.ndarray, ...]
    logits: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()

    @property
    def features(self) -> np.ndarray:
        """Inputs of the classification head, float32 [N, d]."""
        return self.inputs[-1]


def forward_pass(model: nn.Module, loader: Iterable[Sequence[Tensor]], device: str | torch.device = "cpu") -> Forward:
    """Run every row through ``model`` once, in eval mode and without gradients.

    Kept are the inputs of every ``nn.Linear`` that sees one vector a row and of every ``nn.Embedding`` (the mean of the
    one-hot ids of the row, padding left out); wider ones than ``SKETCH_WIDTH`` multiplied by fixed random signs. A layer
    called several times a pass, or on one vector a token or pixel, is left out. The classification head is the last
    ``nn.Linear`` called; its output must be the logits.

    Args:
        model: ``model(x)`` gives logits [B, K], or an object that has them as ``.logits``. Its modes and place are as before
            afterwards.
        loader: yields ``(inputs, int64 codes [B])`` in index order; a shuffled one would mix up the rows.
        device: where to run it.

    Raises:
        ModelError: no ``nn.Linear`` makes the logits, or they are not one row of K numbers an example.
        TrainingError: a logit or a layer's input is not finite.
        ValueError: the loader has no rows.
    """
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in model.modules()}
    recorder = _Recorder(model)
    logits: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    try:
        model.to(device).eval()
        with recorder.attached(), torch.no_grad():
            for batch, targets in loader:
                output: Any = model(batch.to(device))
                scores: Tensor = output if isinstance(output, Tensor) else output.logits
                recorder.end_batch(scores, len(targets))
                logits.append(scores.float().cpu().numpy())
                labels.append(np.asarray(targets, dtype=np.int64))
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training
    if not labels:
        raise ValueError("forward_pass: the loader has no rows")
    names, inputs = recorder.layers()
    stacked, codes = np.concatenate(logits), np.concatenate(labels)
    check_labels(codes, stacked.shape[1], rows=len(stacked))
    for what, values in [("logits", stacked), *((f"inputs of {n}", v) for n, v in zip(names, inputs, strict=True))]:
        require_finite(
            values, what, error=TrainingError, advice="Train with a lower learning rate or clip the gradient."
        )
    return Forward(inputs, stacked, codes, names)


@dataclass
class _Recorder:
    """The layers' inputs of one pass, batch by batch."""

    model: nn.Module
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)
    batch: dict[str, list[Tensor]] = field(default_factory=dict)
    head: str | None = None
    head_output: Tensor | None = None
    left_out: set[str] = field(default_factory=set)
    signs: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every Linear and Embedding while the context lasts."""
        handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            self.batch.setdefault(name, []).append(arguments[0].detach())
            if isinstance(module, nn.Linear):
                self.head, self.head_output = name, output

        return record

    def end_batch(self, logits: Tensor, rows: int) -> None:
        """Keep what the layers saw of the batch just run; ``logits`` tells whether the last Linear is the head."""
        if logits.ndim != 2 or len(logits) != rows:
            raise ModelError(f"expected logits of shape [{rows}, K] for a batch of {rows}, got {list(logits.shape)}")
        made = self.head_output
        if self.head is None or made is None or made.shape != logits.shape or not torch.equal(made, logits):
            last = "it has none" if self.head is None else f"the last one called, {self.head}, does not make them"
            raise ModelError(
                f"{type(self.model).__name__}: the logits must come straight out of an nn.Linear, and {last}. Label errors "
                "are found in the inputs of that layer: end the model with one."
            )
        for name, calls in self.batch.items():
            if name in self.left_out:
                continue
            seen = self._vectors(name, calls, rows)
            if seen is None and name == self.head:
                raise ModelError(f"{type(self.model).__name__}: the head {name} must see one vector a row")
            if seen is None:
                self.left_out.add(name)
                self.kept.pop(name, None)
            else:
                self.kept.setdefault(name, []).append(seen.float().cpu().numpy())
        self.batch.clear()
        self.head_output = None

    def _vectors(self, name: str, calls: list[Tensor], rows: int) -> Tensor | None:
        """The layer's input as one vector a row [B, d], or None where it does not see one."""
        seen = calls[-1]
        if (len(calls) > 1 and name != self.head) or seen.ndim != 2 or len(seen) != rows:
            return None
        module = self.model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            # The mean of the sketched one-hot rows is the sketch of their mean.
            present = torch.ones_like(seen, dtype=torch.float32)
            if module.padding_idx is not None:
                present = (seen != module.padding_idx).float()
            present = present / present.sum(dim=1, keepdim=True).clamp(min=1)
            signs = self._signs(name, module.num_embeddings, seen.device)
            return torch.einsum("bt,btd->bd", present, signs[seen])  # [B, T] x [B, T, d] -> [B, d]
        if name != self.head and seen.shape[1] > SKETCH_WIDTH:
            return seen.float() @ self._signs(name, seen.shape[1], seen.device)  # [B, in] @ [in, d] -> [B, d]
        return seen

    def _signs(self, name: str, width: int, device: torch.device) -> Tensor:
        """Random signs [width, SKETCH_WIDTH] over sqrt(SKETCH_WIDTH): the same on every machine and in every run."""
        if name not in self.signs:
            drawn = np.random.Generator(np.random.Philox(SKETCH_SEED)).integers(
                0, 2, (width, SKETCH_WIDTH), dtype=np.int8
            )
            self.signs[name] = torch.from_numpy((2.0 * drawn - 1.0) / SKETCH_WIDTH**0.5).float().to(device)
        return self.signs[name]

    def layers(self) -> tuple[tuple[str, ...], tuple[np.ndarray, ...]]:
        """Names and inputs of the layers kept, the head last."""
        names = [name for name in self.kept if name != self.head] + [str(self.head)]
        return tuple(names), tuple(np.concatenate(self.kept[name]) for name in names)
