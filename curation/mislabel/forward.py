"""One pass over the training rows: what each layer that sees one vector a row was given, and the logits.

Axes: N training rows, B rows of a batch, T tokens of a row, d inputs of a layer, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curation.errors import ModelError, TrainingError
from curation.mislabel.bags import TokenBags
from curation.mislabel.checks import check_labels, require_finite

# Wider inputs are brought to this width by adding up columns under random signs: distances stay, to within a few per cent.
SKETCH_WIDTH = 512
SKETCH_SEED = 0
PADDING = -1


@dataclass(frozen=True)
class Forward:
    """What a model makes of every training row, in index order.

    Attributes:
        inputs: what the layers saw, in the order the model calls them: float32 [N, d] of a Linear (sketched to
            ``SKETCH_WIDTH`` columns if wider), ``TokenBags`` of an Embedding; the classification head last, never sketched.
        logits: float32 [N, K].
        labels: int64 [N], the codes the loader gave.
        names: the layers' names, beside ``inputs``.
    """

    inputs: tuple[np.ndarray | TokenBags, ...]
    logits: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()

    @property
    def features(self) -> np.ndarray:
        """Inputs of the classification head, float32 [N, d]."""
        head = self.inputs[-1]
        if isinstance(head, TokenBags):
            raise ValueError("the last of a forward pass's inputs must be those of the classification head")
        return head


def forward_pass(model: nn.Module, loader: Iterable[Sequence[Tensor]], device: str | torch.device = "cpu") -> Forward:
    """Run every row through ``model`` once, in eval mode and without gradients.

    Kept are the inputs of every ``nn.Linear`` that sees one vector a row and of every ``nn.Embedding`` that sees the row's
    ids. Layers called several times a pass or on a vector per token or pixel are left out, as are convolutions. The
    classification head is the last ``nn.Linear`` called; its output must be the logits.

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
    stacked, codes = np.concatenate(logits), np.concatenate(labels)
    names, inputs = recorder.layers(len(codes))
    check_labels(codes, stacked.shape[1], rows=len(stacked))
    advice = "Train with a lower learning rate or clip the gradient."
    require_finite(stacked, "logits", error=TrainingError, advice=advice)
    for name, values in zip(names, inputs, strict=True):
        if isinstance(values, np.ndarray):
            require_finite(values, f"inputs of {name}", error=TrainingError, advice=advice)
    return Forward(inputs, stacked, codes, names)


class _Recorder:
    """The layers' inputs of one pass, batch by batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.kept: dict[str, list[np.ndarray]] = {}
        self.calls: dict[str, list[Tensor]] = {}
        self.sketches: dict[str, tuple[Tensor, Tensor]] = {}
        self.head = ""
        self.head_output: Tensor | None = None

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

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            self.calls.setdefault(name, []).append(arguments[0].detach())
            if isinstance(module, nn.Linear):
                self.head, self.head_output = name, output

        return record

    def end_batch(self, logits: Tensor, rows: int) -> None:
        """Keep what the layers saw of the batch just run; ``logits`` tells whether the last Linear is the head."""
        if logits.ndim != 2 or len(logits) != rows:
            raise ModelError(f"expected logits of shape [{rows}, K] for a batch of {rows}, got {list(logits.shape)}")
        made = self.head_output
        if made is None or made.shape != logits.shape or not torch.allclose(made, logits, 0.0, 0.0, equal_nan=True):
            last = f"the last one called, {self.head}, does not make them" if self.head else "it has none"
            raise ModelError(
                f"{type(self.model).__name__}: the logits must come straight out of an nn.Linear, and {last}. What is "
                "asked for is found in the inputs of that layer: end the model with one."
            )
        for name, calls in self.calls.items():
            seen = self._of_rows(name, calls, rows)
            if seen is not None:
                self.kept.setdefault(name, []).append(seen.cpu().numpy())
        self.calls.clear()
        self.head_output = None

    def _of_rows(self, name: str, calls: list[Tensor], rows: int) -> Tensor | None:
        """The layer's input as one row an example [B, d] or [B, T], or None where it does not see one."""
        seen = calls[-1]
        if len(seen) != rows or seen.ndim > 2 or (len(calls) > 1 and name != self.head):
            return None
        module = self.model.get_submodule(name)
        if isinstance(module, nn.Embedding):
            ids = seen.reshape(rows, -1).to(torch.int32)
            return ids if module.padding_idx is None else torch.where(ids == module.padding_idx, PADDING, ids)
        if seen.ndim != 2:
            return None
        if name != self.head and seen.shape[1] > SKETCH_WIDTH:
            return self._sketched(name, seen.float())
        return seen.float()

    def _sketched(self, name: str, rows: Tensor) -> Tensor:
        """Rows [B, in] as [B, SKETCH_WIDTH]: each column, under a random sign, added to one at random, all to equally many.

        Columns and signs are the same on every machine and in every run.
        """
        width = rows.shape[1]
        if name not in self.sketches:
            rng = np.random.Generator(np.random.Philox(SKETCH_SEED))
            padded = -(-width // SKETCH_WIDTH) * SKETCH_WIDTH
            signs = np.zeros(padded, dtype=np.float32)
            signs[:width] = 2.0 * rng.integers(0, 2, width) - 1.0
            order = rng.permutation(padded)
            columns = torch.from_numpy(np.minimum(order, width - 1)).to(rows.device)
            self.sketches[name] = columns, torch.from_numpy(signs[order]).to(rows.device)
        columns, signs_of_columns = self.sketches[name]
        return (rows[:, columns] * signs_of_columns).reshape(len(rows), -1, SKETCH_WIDTH).sum(dim=1)

    def layers(self, rows: int) -> tuple[tuple[str, ...], tuple[np.ndarray | TokenBags, ...]]:
        """Names and inputs of the layers that saw every one of the rows, the head last."""
        names, inputs = [], []
        for name in [*(name for name in self.kept if name != self.head), self.head]:
            parts = self.kept.get(name, [])
            if sum(map(len, parts)) == rows:
                names.append(name)
                embedding = isinstance(self.model.get_submodule(name), nn.Embedding)
                inputs.append(TokenBags.from_ids(_padded(parts)) if embedding else np.concatenate(parts))
        if names[-1:] != [self.head]:
            raise ModelError(f"{type(self.model).__name__}: the head {self.head} must see one vector an example")
        return tuple(names), tuple(inputs)


def _padded(parts: list[np.ndarray]) -> np.ndarray:
    """Batches of ids [B, T] under each other, those with fewer places padded."""
    longest = max(part.shape[1] for part in parts)
    widened = [np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=PADDING) for part in parts]
    return np.concatenate(widened)
