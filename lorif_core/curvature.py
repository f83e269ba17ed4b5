"""Curvature of each layer: a truncated SVD of the stacked stored gradients, streamed, and its damped inverse.

Axes: N training examples, D = d1 d2 a layer's flattened gradient, r curvature rank, p oversampling, Q queries.

H = V_r S_r^2 V_r^T + lambda I over the stored rank-c reconstructions G [N, D], and (papers/lorif.md 6, Woodbury)

    H^-1 g = (g - V_r V_r^T g) / lambda + V_r (V_r^T g / (S_r^2 + lambda))

in the split form, which does not round S^2 / (S^2 + lambda) to one. Three routes to V and S, chosen by size: the
eigenvectors of G^T G where D is small, of G G^T (from factor inner products) where N is, a randomized SVD otherwise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lorif_core.manifest import LayerEntry
from lorif_core.options import CurvatureOptions
from lorif_core.store import Block, FactorStore

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
class LayerCurvature:
    """One layer's damped inverse: orthonormal `vectors` [D, r], squared singular `values` [r], `damping` lambda > 0."""

    vectors: Tensor
    values: Tensor
    damping: float

    def precondition(self, gradients: Tensor) -> Tensor:
        """H^-1 g for the rows of [Q, D]; float64 inside, where g - V V^T g cancels, float32 out."""
        g, v = gradients.double(), self.vectors.double()
        along = g @ v  # [Q, D] @ [D, r] -> [Q, r]
        outside = g - along @ v.T  # [Q, r] @ [r, D] -> [Q, D]
        return (outside / self.damping + (along / (self.values + self.damping)) @ v.T).float()

    def quadratic(self, gradients: Tensor) -> Tensor:
        """g^T H^-1 g [Q] for the rows of [Q, D]; the part outside V by its residual, which does not cancel."""
        along = gradients @ self.vectors  # [Q, D] @ [D, r] -> [Q, r]
        outside = (gradients - along @ self.vectors.T).square().sum(1)
        return outside / self.damping + (along.square() / (self.values + self.damping)).sum(1)


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
        """The sum of squared gradient norms (trace of G^T G), from the factors' Gram matrices in float64."""
        total = 0.0
        for block in self.blocks():
            left, right = block.left.double(), block.right.double()
            total += float(((left.mT @ left) * (right.mT @ right)).sum())  # [n, c, c]
        return total


def fit_curvature(
    store: FactorStore,
    options: CurvatureOptions,
    device: torch.device,
    progress: Callable[[str, int, int | None], None],
) -> dict[str, LayerCurvature]:
    """The damped inverse curvature of every layer of an index.

    Args:
        store: the finished index.
        options: rank, damping and its rule.
        device: where the products run.
        progress: told ("curvature", layers done, layers).
    """
    found = {}
    begin = time.perf_counter()
    for number, layer in enumerate(store.manifest.layers):
        progress("curvature", number, len(store.manifest.layers))
        found[layer.name] = _fit_layer(_Stream(store, layer, device), len(store), options, number)
    progress("curvature", len(found), len(found))
    log.info("curvature of %d layers in %.1f s", len(found), time.perf_counter() - begin)
    return found


def _fit_layer(stream: _Stream, examples: int, options: CurvatureOptions, number: int) -> LayerCurvature:
    size, trace = stream.layer.size, stream.trace()
    limit = min(size, examples)
    rank = min(options.curvature_rank, limit)
    computed = min(rank + OVERSAMPLING, limit)  # the paper's damping averages over the oversampled directions too
    if trace == 0 or (rank == 0 and options.damping_rule != "paper"):
        vectors, values = torch.zeros(size, 0), torch.zeros(0)
    elif limit > GRAM_SIDE and 4 * computed < limit:
        vectors, values = _randomized(stream, computed, options.seed + number)
    elif size <= examples:
        vectors, values = _primal(stream, computed, options.seed + number)
    else:
        vectors, values = _dual(stream, examples, computed, options.seed + number)
    damping = _damping(options, trace, examples, size, float(values.double().sum()) / computed)
    return LayerCurvature(vectors[:, :rank].contiguous(), values[:rank].contiguous(), damping)


def _damping(options: CurvatureOptions, trace: float, examples: int, size: int, mean_value: float) -> float:
    """Lambda of a layer; a layer without any gradient gets the multiplier, so that its scores are zero and not NaN."""
    scale = {
        "mean_norm": trace / examples,
        "trace": trace / size,
        "paper": mean_value,
        "absolute": 1.0,
    }[options.damping_rule]
    return options.damping * (scale or 1.0)


def _primal(stream: _Stream, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors of G^T G [D, D], one pass."""
    gram = torch.zeros(stream.layer.size, stream.layer.size, dtype=torch.float64, device=stream.device)
    for block in stream.dense():
        gram += block.T @ block  # [D, n] @ [n, D] -> [D, D], summed over blocks in float64
    vectors, values = top_eigenvectors(gram, count, seed)
    return vectors.float(), values.float()


def _dual(stream: _Stream, examples: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eigenvectors of K = G G^T [N, N] from factor inner products, then V = G^T W / S in one pass."""
    kernel = torch.zeros(examples, examples, dtype=torch.float64, device=stream.device)
    blocks = [(b.start, b.left.to(stream.device).double(), b.right.to(stream.device).double()) for b in stream.blocks()]
    for start, left, right in blocks:
        for other, left2, right2 in blocks:
            if other >= start:
                part = _inner_products(left, right, left2, right2)
                kernel[start : start + len(left), other : other + len(left2)] = part
                kernel[other : other + len(left2), start : start + len(left)] = part.T
    weights, values = top_eigenvectors(kernel, count, seed)
    # dividing by S magnifies the rounding of K and of G^T W, so the weakest directions go to the complement
    dtype, weakest = (torch.float64, 2e-16 * examples) if _is_small(examples, count) else (torch.float32, 1e-8)
    kept = values > values[0] * weakest
    values, weights = values[kept], (weights[:, kept] / values[kept].sqrt()).to(dtype)  # [N, r]
    vectors = torch.zeros(stream.layer.size, len(values), dtype=dtype, device=stream.device)
    row = 0
    for block in stream.dense():
        vectors.addmm_(block.T.to(dtype), weights[row : row + len(block)])  # [D, n] @ [n, r] -> [D, r]
        row += len(block)
    return vectors.float(), values.float()


def _inner_products(left: Tensor, right: Tensor, left2: Tensor, right2: Tensor) -> Tensor:
    """<U V^T, U' V'^T> [n, m] = sum over all c x c terms of (U^T U') (V^T V')."""
    total = torch.zeros(len(left), len(left2), dtype=left.dtype, device=left.device)
    for i in range(left.shape[2]):
        for j in range(left2.shape[2]):
            total += (left[:, :, i] @ left2[:, :, j].T) * (right[:, :, i] @ right2[:, :, j].T)
    return total


def top_eigenvectors(gram: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(vectors [n, count], values [count], largest first) of a positive semidefinite float64 matrix [n, n].

    All of them where that is most of the work anyway; by subspace iteration in float32 where few are wanted of a large
    matrix, with a last step in float64 that makes them diagonalise it to that precision, converged or not: V = G^T W / S
    is orthonormal only as far as W^T (G G^T) W is S^2.
    """
    size = len(gram)
    if _is_small(size, count):
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


def _is_small(size: int, count: int) -> bool:
    """Whether all eigenvectors are computed, to float64."""
    return size <= EXACT_SIDE or 3 * count >= size


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
