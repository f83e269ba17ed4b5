"""Two-sided projections: each layer's gradient [a, b] becomes P_in^T G P_out [d1, d2].

Axes: a / b input and output side of a layer, d1 / d2 their projected sizes, f the projection factor.

- identity: P = I.
- rademacher: random signs / sqrt(d), unbiased for dot products; drawn from Philox bits keyed by seed, layer name and
  side, so every device and machine has the same and nothing need be stored.
- pca: the top eigenvectors of the uncentred second moments of the layer's inputs and of its output gradients (LoGRA's
  `pca`, papers/lorif.md 11), one pass over a sample of the examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorif_core.capture import Loss, Shared, tapped
from lorif_core.contraction import Sides
from lorif_core.layers import Layer, WholeRule
from lorif_core.loaders import examples_of
from lorif_core.objectives import batch_rows, select_rows, to_device

WHOLE_SIDE = 16
"""A side this small is kept whole: projecting it saves a few numbers and loses most of the layer (classes, scale rows)."""
PCA_POSITIONS = 10_000
"""Positions (examples x tokens) a pca projection is estimated from; more changes little and costs a pass."""


def projected_size(side: int, factor: int) -> int:
    """D of a side: the side itself up to `WHOLE_SIDE`, else max(1, side // f) (papers/lorif.md 2)."""
    return side if side <= WHOLE_SIDE else max(1, side // factor)


@dataclass(frozen=True)
class Projections:
    """(P_in [a, d1], P_out [b, d2]) of each layer, None for identity; float32."""

    kind: str
    sides: dict[str, Sides]

    def size(self, layer: Layer) -> tuple[int, int]:
        """(d1, d2) of a layer."""
        p_in, p_out = self.sides[layer.name]
        return layer.rows if p_in is None else p_in.shape[1], layer.columns if p_out is None else p_out.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The matrices under `in.<layer>` and `out.<layer>`."""
        named = {
            f"{side}.{name}": p for name, ps in self.sides.items() for side, p in zip(("in", "out"), ps, strict=True)
        }
        return {name: p.cpu().contiguous() for name, p in named.items() if p is not None}

    def digest(self) -> str:
        """sha256 of the matrices: equal for two indexes whose scores may be compared."""
        sha = hashlib.sha256(self.kind.encode())
        for name, matrix in sorted(self.tensors().items()):
            sha.update(f"{name}{tuple(matrix.shape)}".encode() + matrix.numpy().tobytes())
        return sha.hexdigest()

    def to(self, device: torch.device) -> Projections:
        """The same on a device."""
        moved = {
            n: (None if i is None else i.to(device), None if o is None else o.to(device))
            for n, (i, o) in self.sides.items()
        }
        return Projections(self.kind, moved)


def identity(layers: Sequence[Layer]) -> Projections:
    """No projection."""
    return Projections("identity", {layer.name: (None, None) for layer in layers})


def rademacher(layers: Sequence[Layer], factor: int, seed: int) -> Projections:
    """Random signs / sqrt(d), the same for one (seed, layer name, side) everywhere."""

    def side(layer: Layer, which: str, size: int) -> Tensor | None:
        d = projected_size(size, factor)
        return None if d == size else random_signs(f"{layer.name}/{which}", size, d, seed) / d**0.5

    return Projections("rademacher", {x.name: (side(x, "in", x.rows), side(x, "out", x.columns)) for x in layers})


def random_signs(name: str, rows: int, columns: int, seed: int) -> Tensor:
    """Signs [rows, columns], float32, the same for one (name, seed) on every machine."""
    count = rows * columns
    bits = np.unpackbits(_random_words(name, -(-count // 64), seed).view(np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits.astype(np.float32).reshape(rows, columns)) * 2 - 1


def random_normal(name: str, rows: int, columns: int, seed: int) -> Tensor:
    """Standard normals [rows, columns], float32, the same for one (name, seed) on every machine."""
    uniform = (torch.from_numpy(_random_words(name, rows * columns, seed) >> np.uint64(12)).double() + 0.5) / 2**52
    return (torch.erfinv(2 * uniform - 1) * 2**0.5).float().reshape(rows, columns)


def _random_words(name: str, count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Raw 64-bit words of Philox keyed by (seed, name): unlike numpy's distributions, fixed across its versions."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    return np.random.Philox(key=key).random_raw(count).astype("<u8")


def pca(
    model: nn.Module,
    layers: Sequence[Layer],
    loss: Loss,
    loader: Iterable[Any],
    *,
    factor: int,
    positions_per_example: int,
    shared: Shared,
    device: torch.device,
    progress: Callable[[int], None],
) -> Projections:
    """Top eigenvectors of the second moments of inputs and output gradients, one pass over evenly spaced examples.

    Args:
        model: the model, already frozen.
        layers: the layers to project.
        loss: per-example loss [B].
        loader: batches of training examples, of which evenly spaced ones are used.
        factor: f of `projected_size`.
        positions_per_example: the fewest positions one example gives any layer, to know when the sample is large enough.
        shared: layers that run once for a whole batch.
        device: where the model is.
        progress: told the examples used so far.

    Raises:
        ValueError: a second moment is not finite.
    """
    moments = _Moments()
    step = _sampling_step(loader, positions_per_example)
    row = used = 0
    with tapped(model, layers, moments.on_input, moments.on_gradient, shared) as tape:
        for batch in loader:
            size = batch_rows(batch)
            chosen = [i for i in range(size) if (row + i) % step == 0]
            row += size
            if chosen:
                tape(loss, to_device(batch if len(chosen) == size else select_rows(batch, chosen), device))
                used += len(chosen)
                progress(used)
    bad = sorted(name for name, m in moments.sums.items() if not torch.isfinite(m).all())
    if bad:
        raise ValueError(
            f"inputs or gradients of layers {bad} are not finite: check the model's weights and the training data"
        )

    def side(name: str, size: int) -> Tensor | None:
        d = projected_size(size, factor)
        return None if d == size else top_eigenvectors(moments.sums[name], d)

    return Projections(
        "pca", {x.name: (side(f"in.{x.name}", x.rows), side(f"out.{x.name}", x.columns)) for x in layers}
    )


def top_eigenvectors(moment: Tensor, d: int) -> Tensor:
    """Eigenvectors [n, d] of the d largest eigenvalues of [n, n] (or of a diagonal [n]), largest first, fixed signs."""
    if moment.ndim == 1:
        chosen = moment.argsort(descending=True, stable=True)[:d]
        return torch.nn.functional.one_hot(chosen, len(moment)).T.to(torch.float32).contiguous()
    vectors = torch.linalg.eigh(moment if len(moment) <= 512 else moment.float())[1].flip(1)[:, :d]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    signed: Tensor = (vectors * largest.sign()).to(torch.float32).contiguous()
    return signed


class _Moments:
    """Sums of X^T X and dY^T dY of each layer (of G G^T and G^T G where only the whole gradient is known), float64."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def _add(self, name: str, moment: Tensor) -> None:
        previous = self.sums.get(name)
        self.sums[name] = moment.double() if previous is None else previous + moment

    def on_input(self, layer: Layer, x: Tensor) -> Tensor:
        if isinstance(layer.rule, WholeRule):
            return layer.rule.keep(layer.module, x)
        self._add(f"in.{layer.name}", layer.rule.input_moment(layer.module, x))
        return x[:0]  # the backward pass needs no input for dY^T dY

    def on_gradient(self, layer: Layer, kept: Tensor, dy: Tensor) -> None:
        if isinstance(layer.rule, WholeRule):
            whole = layer.rule.matrix(layer.module, kept, dy)  # [B, a, b]
            self._add(f"in.{layer.name}", (whole @ whole.mT).sum(0))
            self._add(f"out.{layer.name}", (whole.mT @ whole).sum(0))
        else:
            columns = layer.rule.outputs(layer.module, dy).flatten(0, 1)  # [B T, b]
            self._add(f"out.{layer.name}", columns.T @ columns)


def _sampling_step(loader: Iterable[Any], positions_per_example: int) -> int:
    """Use every how-manieth example: about `PCA_POSITIONS` positions, spanning the data, whatever the batch size."""
    examples, wanted = examples_of(loader), -(-PCA_POSITIONS // positions_per_example)
    return max(1, examples // wanted) if examples else 1
