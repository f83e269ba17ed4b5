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

from lorif_core.capture import Loss, tapped
from lorif_core.layers import Layer, Sides
from lorif_core.objectives import batch_rows, to_device

WHOLE_SIDE = 16
"""A side this small is kept whole: projecting it saves a few numbers and loses most of the layer (classes, scale rows)."""
PCA_POSITIONS = 20_000
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
    """Signs [rows, columns], float32, from the raw bits of Philox keyed by (name, seed): portable and version-proof."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    count = rows * columns
    words = np.random.Philox(key=key).random_raw(-(-count // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits.astype(np.float32).reshape(rows, columns)) * 2 - 1


def pca(
    model: nn.Module,
    layers: Sequence[Layer],
    loss: Loss,
    loader: Iterable[Any],
    factor: int,
    positions_per_example: int,
    device: torch.device,
    progress: Callable[[int, int | None], None],
) -> Projections:
    """Top eigenvectors of the second moments of inputs and output gradients, one pass over evenly spaced batches.

    Args:
        model: the model, already frozen.
        layers: the layers to project.
        loss: per-example loss [B].
        loader: batches of training examples; read evenly spaced so that sorted data is covered.
        factor: f of `projected_size`.
        positions_per_example: the fewest positions one example gives any layer, to know when the sample is large enough.
        device: where the model is.
        progress: told (batches used, batches to use).

    Raises:
        ValueError: a second moment is not finite.
    """
    moments = _Moments()
    with tapped(model, layers, moments.on_input, moments.on_gradient) as tape:
        examples = 0
        every = _sampling_step(loader, positions_per_example)
        for number, batch in enumerate(loader):
            if number % every:
                continue
            tape(loss, to_device(batch, device))
            examples += batch_rows(batch)
            progress(examples, None)
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
        return torch.nn.functional.one_hot(chosen, len(moment)).T.to(torch.float32)
    vectors = torch.linalg.eigh(moment)[1].flip(1)[:, :d]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    signed: Tensor = (vectors * largest.sign()).to(torch.float32)
    return signed


class _Moments:
    """Sums of X^T X and dY^T dY of each layer (of G G^T and G^T G where only the whole gradient is known), float64."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def _add(self, name: str, moment: Tensor) -> None:
        previous = self.sums.get(name)
        self.sums[name] = moment.double() if previous is None else previous + moment

    def on_input(self, layer: Layer, x: Tensor) -> Tensor:
        if layer.rule.paired:
            self._add(f"in.{layer.name}", layer.rule.input_moment(layer.module, x))
            return x[:0]  # the backward pass needs no input for dY^T dY
        return layer.rule.keep(layer.module, x, None)

    def on_gradient(self, layer: Layer, kept: Tensor, dy: Tensor) -> None:
        if layer.rule.paired:
            columns = _columns(layer, dy.float())  # [B T, b]
            self._add(f"out.{layer.name}", columns.T @ columns)
            return
        whole = layer.rule.gradient(layer.module, kept, dy, (None, None))
        if not isinstance(whole, Tensor):
            raise TypeError(f"layer {layer.name!r}: an unpaired rule must return the whole gradient")
        self._add(f"in.{layer.name}", torch.einsum("nab,ncb->ac", whole, whole))
        self._add(f"out.{layer.name}", torch.einsum("nab,nac->bc", whole, whole))


def _columns(layer: Layer, dy: Tensor) -> Tensor:
    """The output gradient as [B T, b]: channels are the second axis of a convolution, the last of everything else."""
    return (
        dy.flatten(2).mT.reshape(-1, layer.columns)
        if isinstance(layer.module, nn.Conv2d)
        else dy.reshape(-1, layer.columns)
    )


def _sampling_step(loader: Any, positions_per_example: int) -> int:
    """Read every how-manieth batch, so that about `PCA_POSITIONS` positions are used and the whole data is spanned."""
    batches = len(loader) if hasattr(loader, "__len__") else 0
    batch_size = getattr(loader, "batch_size", None) or 1
    wanted = -(-PCA_POSITIONS // (positions_per_example * batch_size))
    return max(1, batches // wanted) if batches else 1
