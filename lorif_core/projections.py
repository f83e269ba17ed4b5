"""Two-sided projections: each layer's gradient [a, b] becomes P_in^T G P_out [d1, d2].

Axes: a / b input and output side of a layer, d1 / d2 their projected sizes, f the projection factor.

- identity: P = I.
- rademacher: random signs / sqrt(d), unbiased for dot products; drawn from Philox bits keyed by seed, layer name and
  side, so every device and machine has the same and nothing need be stored. Ids get one signed column each.
- pca: the top eigenvectors of the uncentred second moments of the layer's inputs and of its output gradients (LoGRA's
  `pca`, papers/lorif.md 11), one pass over a sample of the examples, turned at random within the space they span: no dot
  product changes, and the numbers of a gradient are of one size, as codes of few bits need. Of ids the commonest ones.
- kfac, whitened: the same, and whitened (`lorif_core.whitening`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorif_core.contraction import Sides
from lorif_core.layers import Layer, OneHotRule
from lorif_core.lookup import Lookup, commonest, every_id, hashed
from lorif_core.moments import Moments

WHOLE_SIDE = 16
"""A side this small is kept whole: projecting it saves a few numbers and loses most of the layer (classes, scale rows)."""
PCA_POSITIONS = 2048
"""The fewest positions (examples x tokens) a pca projection is estimated from, where there are as many."""
PCA_POSITIONS_A_SIDE = 2
"""Positions for each unit of the widest side, where that is more (on a small GPT, 2 to 300 gave the same LDS)."""
EIGH_SIDE = 256
"""The largest side of which all eigenvectors are computed, however few are wanted."""
ITERATIONS, OVERSAMPLING = 5, 16
"""Of the subspace iteration for a wider side, and the directions it has more than are wanted."""


Sizes = Mapping[str, tuple[int, int]]
"""(d1, d2) of each layer, by name."""


def projected_size(side: int, factor: float) -> int:
    """D of a side: the side itself up to `WHOLE_SIDE`, else max(1, side // f) (papers/lorif.md 2)."""
    return side if side <= WHOLE_SIDE else max(1, int(side // factor))


def even_sizes(rows: int, columns: int, factor: float) -> tuple[int, int]:
    """(d1, d2) as near to each other as can be, with no more than rows columns / f^2 numbers.

    A wide side's vectors fill few of its directions (they are made from, or for, the narrow side's), so that equal factors
    spend the numbers on directions of the wide side that say less than those they cut off the narrow one.
    """
    narrow, wide = sorted((rows, columns))
    if narrow <= WHOLE_SIDE:
        return projected_size(rows, factor), projected_size(columns, factor)
    numbers = rows * columns / factor**2
    least = max(1, min(narrow, math.isqrt(int(numbers))))
    most = max(1, min(wide, int(numbers / least)))
    return (least, most) if rows <= columns else (most, least)


@dataclass(frozen=True)
class Projections:
    """(P_in [a, d1], P_out [b, d2]) of each layer, None for identity; float32, or a `Lookup` of ids."""

    kind: str
    sides: dict[str, Sides]

    @property
    def measured(self) -> bool:
        """Whether the matrices come from model and data, so that they are kept beside the index."""
        return self.kind not in ("identity", "rademacher")

    def size(self, layer: Layer) -> tuple[int, int]:
        """(d1, d2) of a layer."""
        p_in, p_out = self.sides[layer.name]
        return layer.rows if p_in is None else p_in.shape[1], layer.columns if p_out is None else p_out.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The matrices under `in.<layer>` and `out.<layer>`; a lookup's scales under `scale.<layer>`."""
        named = {
            f"{side}.{name}": p for name, ps in self.sides.items() for side, p in zip(("in", "out"), ps, strict=True)
        }
        matrices = {name: p.codes if isinstance(p, Lookup) else p for name, p in named.items() if p is not None}
        lookups = {name: p for name, (p, _) in self.sides.items() if isinstance(p, Lookup)}
        matrices |= {f"scale.{name}": p.scales for name, p in lookups.items() if p.scales is not None}
        return {name: matrix.cpu().contiguous() for name, matrix in matrices.items()}

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
    return Projections("identity", {layer.name: (_whole(layer), None) for layer in layers})


def from_tensors(kind: str, layers: Sequence[Layer], stored: dict[str, Tensor], sizes: Sizes) -> Projections:
    """The inverse of `Projections.tensors`."""

    def inputs(layer: Layer) -> Tensor | Lookup | None:
        found = stored.get(f"in.{layer.name}")
        if isinstance(layer.rule, OneHotRule) and found is not None:
            return Lookup(found, sizes[layer.name][0], stored.get(f"scale.{layer.name}"))
        return found

    return Projections(kind, {x.name: (inputs(x), stored.get(f"out.{x.name}")) for x in layers})


def _whole(layer: Layer) -> Lookup | None:
    """The in side where it is not projected."""
    rule = layer.rule
    return every_id(layer.rows, rule.padding(layer.module)) if isinstance(rule, OneHotRule) else None


def rademacher(layers: Sequence[Layer], sizes: Sizes, seed: int) -> Projections:
    """Random signs / sqrt(d), the same for one (seed, layer name, side) everywhere."""

    def side(layer: Layer, which: str, size: int, d: int) -> Tensor | None:
        return None if d == size else random_signs(f"{layer.name}/{which}", size, d, seed) / d**0.5

    def inputs(layer: Layer) -> Tensor | Lookup | None:
        d = sizes[layer.name][0]
        if d == layer.rows:
            return _whole(layer)
        if isinstance(layer.rule, OneHotRule):
            words = _random_words(f"{layer.name}/in", layer.rows, seed) >> np.uint64(1)
            return hashed(torch.from_numpy(words.astype(np.int64)), d, layer.rule.padding(layer.module))
        return side(layer, "in", layer.rows, d)

    return Projections("rademacher", {x.name: (inputs(x), side(x, "out", x.columns, sizes[x.name][1])) for x in layers})


def random_signs(name: str, rows: int, columns: int, seed: int) -> Tensor:
    """Signs [rows, columns], float32, the same for one (name, seed) on every machine."""
    count = rows * columns
    bits = np.unpackbits(_random_words(name, -(-count // 64), seed).view(np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits.astype(np.float32).reshape(rows, columns)) * 2 - 1


def random_normal(name: str, rows: int, columns: int, seed: int) -> Tensor:
    """Standard normals [rows, columns], float32, the same for one (name, seed) on every machine."""
    uniform = (torch.from_numpy(_random_words(name, rows * columns, seed) >> np.uint64(12)).double() + 0.5) / 2**52
    return (torch.erfinv(2 * uniform - 1) * 2**0.5).float().reshape(rows, columns)


def rotation(name: str, size: int) -> Tensor:
    """An orthogonal matrix [size, size], float32, the same for one name on every machine up to rounding."""
    turned: Tensor = torch.linalg.qr(random_normal(name, size, size, 0).double())[0].float()
    return turned


def _random_words(name: str, count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Raw 64-bit words of Philox keyed by (seed, name): unlike numpy's distributions, fixed across its versions."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    return np.random.Philox(key=key).random_raw(count).astype("<u8")


def pca(layers: Sequence[Layer], moments: Moments, sizes: Sizes) -> Projections:
    """Top eigenvectors of the second moments of inputs and output gradients."""

    def side(name: str, size: int, d: int) -> Tensor | None:
        if d == size:
            return None
        moment = moments.sums[name]
        turned: Tensor = top_eigenvectors(moment, d) @ rotation(name, d).to(moment.device)  # [n, d] @ [d, d]
        return turned.contiguous()

    def inputs(layer: Layer) -> Tensor | Lookup | None:
        name, d = f"in.{layer.name}", sizes[layer.name][0]
        if d == layer.rows:
            return _whole(layer)
        if isinstance(layer.rule, OneHotRule):
            return commonest(moments.sums[name], d, layer.rule.padding(layer.module))
        return side(name, layer.rows, d)

    return Projections("pca", {x.name: (inputs(x), side(f"out.{x.name}", x.columns, sizes[x.name][1])) for x in layers})


def top_eigenvectors(moment: Tensor, d: int) -> Tensor:
    """Eigenvectors [n, d] of the d largest eigenvalues of [n, n], largest first, fixed signs; float32."""
    return top_eigenpairs(moment, d)[1].to(torch.float32).contiguous()


def top_eigenpairs(moment: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """(values [d], vectors [n, d]) of the d largest eigenvalues of [n, n], largest first, fixed signs."""
    values, vectors = _leading(moment, d)
    values, vectors = values.flip(0)[:d], vectors.flip(1)[:, :d]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


def _leading(moment: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """At least the d largest eigenvalues of [n, n], smallest first, and their vectors.

    Where few are wanted of a large matrix, by subspace iteration in its own precision, for one direction may be a million
    times the others: what is found of a spectrum that falls as 1 / k holds all but a few parts in a thousand of what the best
    directions do, of one that hardly falls a few in a hundred less, in a fraction of the time.
    """
    size = len(moment)
    if size <= EIGH_SIDE or 3 * d >= size:
        values, vectors = torch.linalg.eigh(moment)
        return values, vectors
    basis = torch.randn(size, d + OVERSAMPLING, generator=torch.Generator().manual_seed(0)).to(moment)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(moment @ basis)[0]  # [n, n] @ [n, d + p]
    small = basis.T @ (moment @ basis)  # [d + p, d + p]
    values, weights = torch.linalg.eigh((small + small.T) / 2)
    return values, basis @ weights
