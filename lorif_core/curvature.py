"""Curvature of each layer: a truncated SVD of the stacked stored gradients, streamed.

Axes: N training examples, D = d1 d2 a layer's flattened gradient, r curvature rank, p oversampling.

H = V_r S_r^2 V_r^T + lambda I over the gradients G [N, D] as stored (papers/lorif.md 5 and 6; what is made of it:
`lorif_core.inverse`). Three routes to V and S, chosen by size: the eigenvectors of G^T G where D is small, of G G^T (from
inner products, V never formed) where N is, a randomized SVD otherwise. The first takes one pass over the shards, for all
layers that fit in memory together; the last takes five. Where every direction is wanted of a layer whose G G^T is small, there
is no SVD: its inverse is a Cholesky factor, which costs less than the largest directions, and less to make than to keep.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.damping import SAMPLE, Sampled, damping_for, evenly_spaced, sampled
from lorif_core.inverse import DualInverse, KernelInverse, LayerInverse, PrimalInverse
from lorif_core.manifest import LayerEntry
from lorif_core.options import AUTO, EXACT_SIDE, CurvatureOptions
from lorif_core.passes import Gram, RandomizedSVD, Sum, Trace, groups, run
from lorif_core.store import FactorStore
from lorif_core.threads import workers
from lorif_core.windows import Window

log = logging.getLogger(__name__)

OVERSAMPLING = 10
POWER_ITERATIONS = 3
GRAM_SIDE = 8192
"""The largest min(N, D) whose Gram matrix is formed (in one pass); above, the SVD is randomized and streamed."""
BLOCK_NUMBERS = 2**24
"""Floats of one dense block of gradients: 64 MB."""
BLOCK_ROWS = 1024
"""Of a block: few enough for its float32 sums, enough for a fast product."""
KERNEL_BYTES = 2**28
"""Of all Cholesky factors of an index, held for its queries and made whenever it is opened: about a second of one core."""
KERNEL_NUMBERS = 4096
"""Of an example's layer, times its rank c: what a dot product of two of them costs then."""
SINGLE = 1e-2
"""Lambda, over the mean squared norm of a layer's rows, from which on float32 is precise enough for their dot products
(of rows that are nearly one and the same it never is: what sets them apart is then lost in rounding)."""
DUAL_BYTES = 40
"""Of the dual form, N^2 times: K, a copy of it and what its eigenvectors are found in; up to 38 were measured."""
MEMORY_LIMIT = 2**30
"""Bytes of the sums held at once, unless told otherwise."""


def fit_curvature(
    store: FactorStore,
    options: CurvatureOptions,
    device: torch.device,
    progress: Callable[[str, int, int | None], None],
    memory_limit: int = MEMORY_LIMIT,
    names: Collection[str] | None = None,
) -> dict[str, LayerInverse]:
    """The damped inverse curvature of every layer of an index, or of some.

    Passes over the shards: one for all the Gram matrices that fit in memory together, `POWER_ITERATIONS` + 2 for as many
    randomized SVDs. (The dual form reads the layer's rows once for each block of them, once more for their norms, and with
    `auto` twice as often; they are few.)

    Args:
        store: the finished index.
        options: rank, damping and its rule.
        device: where the products run.
        progress: told ("curvature", layers done, layers).
        memory_limit: bytes of the sums held at once. A layer whose Gram matrix needs more gets a randomized SVD; one whose
            directions do has its passes for itself.
        names: of the layers; None = all. A layer's inverse is the same whichever others are fitted with it.
    """
    begin = time.perf_counter()
    numbered = [(i, x) for i, x in enumerate(store.manifest.layers) if names is None or x.name in names]
    layers = [layer for _, layer in numbered]
    found: dict[str, LayerInverse] = {}
    sums: list[Sum] = []
    whole = whole_layers(store.manifest.layers, len(store), options, memory_limit)
    for number, layer in numbered:
        if layer.name in whole:
            progress("curvature", len(found), len(layers))
            found[layer.name] = _fit_whole(store, layer, options, device)
        elif is_dual(layer, len(store), memory_limit):
            progress("curvature", len(found), len(layers))
            found[layer.name] = _fit_dual(store, layer, options, number, device)
        else:
            sums.append(_sum(layer, len(store), options, number, device, memory_limit))
    together = groups(sums, memory_limit)
    log.info("curvature of %d layers in %s", len(sums), _passes(together))
    sums.clear()
    while together:
        group = together.pop(0)  # whose memory goes with it
        if max(one.bytes for one in group) > memory_limit:
            log.warning("layer %s alone needs more than memory_limit=%d bytes", group[0].layer.name, memory_limit)

        def tell(rows: int, group: list[Sum] = group) -> None:
            progress("curvature", len(found) + len(group) * rows // (len(store) + 1), len(layers))

        with workers(device) as pool:
            run(store, group, _block_rows, pool, tell)
            for one, inverse in zip(group, pool.map(partial(_inverse, store, options), group), strict=True):
                found[one.layer.name] = inverse
        progress("curvature", len(found), len(layers))
    log.info("curvature of %d layers in %.1f s", len(found), time.perf_counter() - begin)
    return {layer.name: found[layer.name] for layer in layers}


def is_dual(layer: LayerEntry, examples: int, memory_limit: int) -> bool:
    """Whether a layer's curvature follows from the dot products of its few rows."""
    return examples < layer.size and examples <= GRAM_SIDE and DUAL_BYTES * examples**2 <= memory_limit


def whole_layers(layers: Sequence[LayerEntry], examples: int, options: CurvatureOptions, memory_limit: int) -> set[str]:
    """The layers whose inverse has every direction, as a `KernelInverse`: all that may have one, or none.

    A layer may where rank r leaves none of its N < D directions out, or is left to the engine, and where two of its rows are
    quickly multiplied; all do where their factors fit in `KERNEL_BYTES`, and in the limit with what the last is made in.
    """
    every = options.curvature_rank == AUTO or options.rank >= examples
    found = {x.name for x in layers if examples < x.size and max(x.rank, 1) * x.numbers <= KERNEL_NUMBERS}
    factors, made_in = len(found) * 8 * examples**2, DUAL_BYTES * examples**2
    return found if every and factors <= KERNEL_BYTES and factors + made_in <= memory_limit else set()


def kernel_inverses(store: FactorStore, damping: dict[str, float], device: torch.device) -> dict[str, LayerInverse]:
    """The `KernelInverse` of each layer in `damping`, from its rows."""
    streams = {x.name: _Stream(store, x, device) for x in store.manifest.layers if x.name in damping}
    return {name: _whole(stream, damping[name], stream.trace()) for name, stream in streams.items()}


def _block_rows(layer: LayerEntry) -> int:
    """Rows of a block: its dense form has at most `BLOCK_NUMBERS` numbers, a little one stays in cache."""
    return max(1, min(BLOCK_NUMBERS // layer.size, BLOCK_ROWS))


def _passes(together: list[list[Sum]]) -> str:
    """A group each: its passes and kind."""
    return ", ".join(f"{x[0].passes} passes ({len(x)} {type(x[0]).__name__})" for x in together) or "no pass"


def _rank(options: CurvatureOptions, layer: LayerEntry, examples: int, *, exact: bool) -> tuple[int, int]:
    """(directions kept, directions computed), `exact` where all are found anyway."""
    limit = min(layer.size, examples)
    rank = options.rank_of(limit) if exact else min(options.rank, limit)
    return rank, min(rank + OVERSAMPLING, limit)


def averaged(options: CurvatureOptions, layer: LayerEntry, examples: int) -> int:
    """Over how many squared singular values the paper's damping averages: the r largest and the oversampled ones."""
    return min(options.rank + OVERSAMPLING, layer.size, examples)


def _sum(
    layer: LayerEntry, examples: int, options: CurvatureOptions, number: int, device: torch.device, memory_limit: int
) -> Sum:
    """What the layer's curvature follows from, in the form that suits its size."""
    if options.rank == 0 and options.damping_rule != "paper":
        return Trace(layer, device)
    if layer.size <= min(examples, GRAM_SIDE) and Gram.needs(layer) <= memory_limit:
        return Gram(layer, device)
    _, computed = _rank(options, layer, examples, exact=False)
    return RandomizedSVD(layer, computed, POWER_ITERATIONS, options.seed + number, device)


def _inverse(store: FactorStore, options: CurvatureOptions, one: Sum) -> LayerInverse:
    """The layer's inverse, from its complete sum."""
    layer, examples, device = one.layer, len(store), one.device
    rank, computed = _rank(options, layer, examples, exact=isinstance(one, Gram))
    vectors, values = torch.zeros(layer.size, 0, device=device), torch.zeros(0, device=device)
    if one.trace and isinstance(one, Gram):
        vectors, values = top_eigenvectors(one.matrix(), computed, options.seed + store.manifest.layers.index(layer))
        vectors, values = vectors.float(), values.float()
    elif one.trace and isinstance(one, RandomizedSVD):
        vectors, values = one.vectors, one.values
    kept = vectors[:, :rank].contiguous()
    top = values[:rank].contiguous()
    lam = damping_for(
        store,
        layer,
        options,
        one.trace,
        _mean(values, averaged(options, layer, examples)),
        lambda: (_Stream(store, layer, device).sample(kept), top),
    )
    return PrimalInverse(kept, top, lam, one.trace)


def _fit_whole(store: FactorStore, layer: LayerEntry, options: CurvatureOptions, device: torch.device) -> LayerInverse:
    """The inverse of a layer with fewer rows than numbers, with all of its directions."""
    stream = _Stream(store, layer, device)
    trace = stream.trace()

    def sample() -> tuple[Sampled, Tensor]:
        rows = evenly_spaced(len(store), SAMPLE).to(device)
        values, vectors = torch.linalg.eigh(_kernel(stream, torch.float64))
        values = values.clamp_min(0)
        return sampled(vectors[rows] * values.sqrt(), None, len(store)), values

    return _whole(stream, damping_for(store, layer, options, trace, trace / len(store), sample), trace)


def _whole(stream: _Stream, damping: float, trace: float) -> KernelInverse:
    """The inverse with all directions of a layer with few rows, from its lambda and trace(G^T G)."""
    single = damping * len(stream.store) >= SINGLE * trace
    dtype = torch.float32 if single else torch.float64
    return KernelInverse.of(_kernel(stream, dtype), damping, dtype)


def _fit_dual(
    store: FactorStore, layer: LayerEntry, options: CurvatureOptions, number: int, device: torch.device
) -> LayerInverse:
    """The inverse of a layer with fewer rows than numbers."""
    stream, examples = _Stream(store, layer, device), len(store)
    rank, computed = _rank(options, layer, examples, exact=True)
    trace = stream.trace()

    if trace == 0 or (rank == 0 and options.damping_rule != "paper"):
        vectors, values = torch.zeros(layer.size, 0, device=device), torch.zeros(0, device=device)
        lam = damping_for(store, layer, options, trace, 0.0, lambda: (stream.sample(vectors), values))
        return PrimalInverse(vectors, values, lam, trace)
    kernel = _kernel(stream, torch.float64)
    weights, coordinates, values, outside = _dual(kernel, computed, rank, options.seed + number)

    top = values[:rank]

    def sample() -> tuple[Sampled, Tensor]:
        rows = evenly_spaced(examples, SAMPLE).to(kernel.device)
        gram = kernel[rows][:, rows] if bool(outside.any()) else None
        return sampled(coordinates[rows].double(), gram, examples), top

    mean = _mean(values, averaged(options, layer, examples))
    lam = damping_for(store, layer, options, trace, mean, sample)
    return DualInverse(weights, coordinates, top, outside, lam)


@dataclass(frozen=True)
class _Stream:
    """One layer's stored gradients, read as often as asked."""

    store: FactorStore
    layer: LayerEntry
    device: torch.device

    def blocks(self) -> Iterator[Block]:
        """Blocks whose dense form has at most `BLOCK_NUMBERS` numbers."""
        return self._blocks(min(4096, BLOCK_NUMBERS // self.layer.size))

    def stored_blocks(self) -> Iterator[Block]:
        """Blocks for products of factors with factors, which are never made dense: fewer, larger ones.

        Of no more than `BLOCK_ROWS`: the products of two blocks, a few of those at once, are then little beside K.
        """
        return self._blocks(min(BLOCK_ROWS, BLOCK_NUMBERS // self.layer.numbers))

    def _blocks(self, rows: int) -> Iterator[Block]:
        """Blocks of so many rows, whatever the shards: what is computed of them depends on those in its last bits."""
        store = self.store
        whole = Window(store, 0, len(store), tuple(store.manifest.shards))
        return whole.blocks(self.layer, max(1, rows), store.manifest.bits)

    def trace(self) -> float:
        """The sum of squared gradient norms."""
        return sum(float(block.squared_norms().sum()) for block in self.blocks())

    def sample(self, vectors: Tensor) -> Sampled:
        """What `auto` needs of evenly spaced rows, for directions V [D, r], in one pass."""
        count = min(SAMPLE, max(2, BLOCK_NUMBERS // self.layer.size))
        wanted = evenly_spaced(len(self.store), count)
        parts = []
        for block in self.blocks():
            rows = wanted[(wanted >= block.start) & (wanted < block.start + len(block))] - block.start
            parts.append(block.select(rows).dense(self.device).double())
        found = torch.cat(parts)  # [n, D]
        gram = None if vectors.shape[0] == vectors.shape[1] else found @ found.T
        return sampled(found @ vectors.double(), gram, len(self.store))


def _mean(values: Tensor, count: int) -> float:
    """Of the largest squared singular values, those that are zero and not listed included."""
    return float(values[:count].double().sum()) / max(count, 1)


def _kernel(stream: _Stream, dtype: torch.dtype) -> Tensor:
    """K = G G^T [N, N], float64, its numbers computed in `dtype`."""
    examples = len(stream.store)
    kernel = torch.zeros(examples, examples, dtype=torch.float64, device=stream.device)
    for one in stream.stored_blocks():
        rows, left = slice(one.start, one.start + len(one)), one.to(stream.device, dtype)
        for other in stream.stored_blocks():  # streamed again, so that two blocks are all that is held
            if other.start >= one.start:
                columns = slice(other.start, other.start + len(other))
                part = left.inner_products(other.to(stream.device, dtype))  # [n, m]
                kernel[rows, columns] = part
                if other.start > one.start:
                    kernel[columns, rows] = part.T
    return kernel


def _dual(kernel: Tensor, count: int, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(M, C, S^2, outside) of `DualInverse`, from the Ritz pairs W, S^2 of K = G G^T [N, N]: M = W / S, C = K M.

    M and C have `rank` columns, S^2 all of `count`.
    """
    examples = len(kernel)
    weights, values = top_eigenvectors(kernel, count, seed)
    kept = values > values[0] * examples * torch.finfo(torch.float64).eps
    spanned = rank >= int(kept.sum()) and (rank < count or count == examples)  # the first one left out is zero
    values, weights = values[kept], (weights[:, kept] / values[kept].sqrt())[:, :rank]  # [N, r]
    coordinates = kernel @ weights  # [N, N] @ [N, r] -> [N, r]
    outside = torch.zeros_like(kernel[0])
    if not spanned:
        outside = (kernel.diagonal() - coordinates.square().sum(1)).clamp_min(0)
    dtype = torch.float64 if examples <= EXACT_SIDE else torch.float32
    return weights.to(dtype), coordinates.to(dtype), values.to(dtype), outside.to(dtype)


def top_eigenvectors(gram: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(vectors [n, count], values [count], largest first) of a positive semidefinite float64 matrix [n, n].

    All of them where that is most of the work anyway; by subspace iteration in float32 where few are wanted of a large
    matrix, with a last step in float64: converged or not, they then diagonalise it, so that G^T W / S is orthonormal.
    """
    size = len(gram)
    if size <= EXACT_SIDE or 3 * count >= size:
        values, vectors = torch.linalg.eigh(gram)
        return vectors.flip(1)[:, :count], values.flip(0)[:count].clamp_min(0)
    single = gram.float()
    basis = torch.randn(size, count, generator=torch.Generator().manual_seed(seed)).to(gram.device)
    for _ in range(1 + POWER_ITERATIONS):
        basis = torch.linalg.qr(single @ basis)[0]
    exact = torch.linalg.qr(basis.double())[0]  # orthonormal to float64
    small = exact.T @ (gram @ exact)
    values, weights = torch.linalg.eigh((small + small.T) / 2)
    return exact @ weights.flip(1), values.flip(0).clamp_min(0)
