"""Curvature of each layer: a truncated SVD of the stacked stored gradients, streamed.

Axes: N training examples, D = d1 d2 a layer's flattened gradient, r curvature rank, p oversampling.

H = V_r S_r^2 V_r^T + lambda I over the gradients G [N, D] as stored (papers/lorif.md 5 and 6; what is made of it:
`lorif_core.inverse`). Three routes to V and S, chosen by size: the eigenvectors of G^T G where D is small, of G G^T (from
inner products, V never formed) where N is, a randomized SVD otherwise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.damping import SAMPLE, Sampled, chosen_damping, damping_of, evenly_spaced, lost_damping
from lorif_core.inverse import DualInverse, LayerInverse, PrimalInverse
from lorif_core.manifest import LayerEntry
from lorif_core.options import AUTO, CurvatureOptions
from lorif_core.store import FactorStore

log = logging.getLogger(__name__)

OVERSAMPLING = 10
POWER_ITERATIONS = 3
GRAM_SIDE = 8192
"""The largest min(N, D) whose Gram matrix is formed (in one pass); above, the SVD is randomized and streamed."""
EXACT_SIDE = 768
"""The largest matrix whose full eigendecomposition is about as cheap as finding its top part by iteration."""
BLOCK_NUMBERS = 2**24
"""Floats of one dense block of gradients: 64 MB."""


@dataclass(frozen=True)
class _Stream:
    """One layer's stored gradients, streamed from disk as often as asked."""

    store: FactorStore
    layer: LayerEntry
    device: torch.device

    def blocks(self) -> Iterator[Block]:
        """Blocks whose dense form has at most `BLOCK_NUMBERS` numbers."""
        return self.store.blocks(self.layer.name, max(1, min(4096, BLOCK_NUMBERS // self.layer.size)))

    def dense(self) -> Iterator[Tensor]:
        """Dense gradients [n, D], block by block."""
        return (block.dense(self.device) for block in self.blocks())

    def multiply(self, basis: Tensor) -> Tensor:
        """G^T (G B) [D, k] for B [D, k], in one pass."""
        product = torch.zeros_like(basis)
        for block in self.dense():
            product += block.T @ (block @ basis)  # [D, n] @ ([n, D] @ [D, k]) -> [D, k]
        return product

    def trace(self) -> float:
        """The sum of squared gradient norms (trace of G^T G), in float64."""
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
        spanned = vectors.shape[0] == vectors.shape[1]
        return Sampled(found @ found.T, found @ vectors.double(), spanned)


def fit_curvature(
    store: FactorStore,
    options: CurvatureOptions,
    device: torch.device,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, LayerInverse]:
    """The damped inverse curvature of every layer of an index.

    Args:
        store: the finished index.
        options: rank, damping and its rule.
        device: where the products run.
        progress: told ("curvature", layers done, layers).
    """
    found: dict[str, LayerInverse] = {}
    begin = time.perf_counter()
    for number, layer in enumerate(store.manifest.layers):
        progress("curvature", number, len(store.manifest.layers))
        found[layer.name] = _fit_layer(_Stream(store, layer, device), len(store), options, number)
    progress("curvature", len(found), len(found))
    log.info("curvature of %d layers in %.1f s", len(found), time.perf_counter() - begin)
    return found


def _fit_layer(stream: _Stream, examples: int, options: CurvatureOptions, number: int) -> LayerInverse:
    size, trace = stream.layer.size, stream.trace()
    limit = min(size, examples)
    rank = min(options.curvature_rank, limit)
    computed = min(rank + OVERSAMPLING, limit)  # the paper's damping averages over the oversampled directions too
    seed = options.seed + number

    def damping(values: Tensor, sample: Callable[[], Sampled]) -> float:
        if options.damping != AUTO:
            return damping_of(options, trace, examples, size, float(values.double().sum()) / computed)
        if trace == 0 or examples == 1:  # nothing to choose by: H^-1 = I, or an example that has no others
            return trace or 1.0
        whole = stream.store.manifest.energy(stream.layer.name)
        best = chosen_damping(sample(), values[:rank], examples, trace / examples)
        return best + lost_damping(whole, trace, examples, size)

    if trace == 0 or (rank == 0 and options.damping_rule != "paper"):
        vectors, values = torch.zeros(size, 0, device=stream.device), torch.zeros(0, device=stream.device)
        return PrimalInverse(vectors, values, damping(values, lambda: stream.sample(vectors)))
    if examples < size and examples <= GRAM_SIDE:
        kernel = _kernel(stream, examples)
        weights, coordinates, values, outside = _dual(kernel, computed, rank, seed)

        def chosen() -> Sampled:
            rows = evenly_spaced(examples, SAMPLE).to(kernel.device)
            own = coordinates[rows].double()
            return Sampled(kernel[rows][:, rows], own, not bool(outside.any()))

        return DualInverse(weights, coordinates, values[:rank], outside, damping(values, chosen))
    find = _primal if limit <= GRAM_SIDE else _randomized
    vectors, values = find(stream, computed, seed)
    vectors = vectors[:, :rank].contiguous()
    return PrimalInverse(vectors, values[:rank].contiguous(), damping(values, lambda: stream.sample(vectors)))


def _primal(stream: _Stream, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors of G^T G [D, D], one pass."""
    gram = torch.zeros(stream.layer.size, stream.layer.size, dtype=torch.float64, device=stream.device)
    for block in stream.dense():
        gram += block.T @ block  # [D, n] @ [n, D] -> [D, D], summed over blocks in float64
    vectors, values = top_eigenvectors(gram, count, seed)
    return vectors.float(), values.float()


def _kernel(stream: _Stream, examples: int) -> Tensor:
    """K = G G^T [N, N], float64, from the factors."""
    kernel = torch.zeros(examples, examples, dtype=torch.float64, device=stream.device)
    for one in stream.blocks():
        rows, double = slice(one.start, one.start + len(one)), one.to(stream.device, torch.float64)
        for other in stream.blocks():  # streamed again, so that two blocks are all that is held
            if other.start >= one.start:
                columns = slice(other.start, other.start + len(other))
                part = double.inner_products(other.to(stream.device, torch.float64))  # [n, m]
                kernel[rows, columns], kernel[columns, rows] = part, part.T
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


def _randomized(stream: _Stream, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Randomized SVD (papers/lorif.md 5): an initial product, power iterations, and a last pass; 5 passes in all."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(stream.layer.size, count, generator=generator).to(stream.device)
    for _ in range(1 + POWER_ITERATIONS):
        basis = torch.linalg.qr(stream.multiply(basis))[0]
    small = torch.zeros(count, count, dtype=torch.float64, device=stream.device)
    for block in stream.dense():
        inside = (block @ basis).double()  # [n, D] @ [D, k] -> [n, k]
        small += inside.T @ inside
    values, weights = torch.linalg.eigh((small + small.T) / 2)
    return basis @ weights.flip(1).float(), values.flip(0).clamp_min(0).float()
