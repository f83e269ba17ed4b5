"""Rank-c factors of a batch of per-example gradients: G ~ U V^T, U [d1, c], V [d2, c].

Axes: B examples, T positions, d1 / d2 projected sides, c factor rank.

Exact where it can be (one position: the two vectors themselves), otherwise a block power iteration of every example at once
(papers/lorif.md 3.3), on X and dY without ever forming G when T < min(d1, d2), on its nonzero rows where X are ids. The
singular values sit in U, the columns of V are orthonormal. The start is the same for every example, so the factors do not
depend on the batch an example comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from lorif_core.contraction import LayerGradient, dense
from lorif_core.lookup import Rows
from lorif_core.projections import random_normal

Factors = tuple[Tensor, Tensor]
"""(left [B, d1, c], right [B, d2, c]), float32."""
ITERATIONS = 16
"""Of the block iteration for c > 1 (papers/lorif.md 3.3)."""
SINGLE_ITERATIONS = 8
"""Of the iteration for c = 1 (the same)."""
DEPENDENT = 1e-5
"""A column whose part outside the earlier ones is smaller than this share of it is rounding noise in float32."""


def factorise(gradients: dict[str, LayerGradient], ranks: dict[str, int], seed: int) -> dict[str, Factors | Tensor]:
    """Factors of every layer of one batch; layers of equal shape are iterated together.

    Args:
        gradients: per layer, the pair (X P_in [B, T, d1], dY P_out [B, T, d2]), the nonzero rows, or the matrix [B, d1, d2].
        ranks: c of each layer, below min(d1, d2) or 1; 0 where the gradient itself [B, d1, d2] is wanted.
        seed: of the iteration's start.
    """
    found: dict[str, Factors] = {}
    whole: dict[str, Factors | Tensor] = {}
    waiting: dict[tuple[int, int, int], dict[str, Tensor]] = {}
    for name, gradient in gradients.items():
        rank = ranks[name]
        if rank == 0:
            whole[name] = dense(gradient)
            continue
        if isinstance(gradient, tuple):
            x, dy = gradient
            positions, smallest = x.shape[1], min(x.shape[2], dy.shape[2])
            if positions == 1 and rank == 1:
                found[name] = (x.mT, dy.mT)  # [B, d1, 1], [B, d2, 1]
                continue
            if positions < smallest and rank < smallest:
                scales = _scales(x), _scales(dy)
                x, dy = x / scales[0], dy / scales[1]
                left, right = _dominant_pair(x, dy, seed) if rank == 1 else _iterate(_implicit(x, dy), dy, rank, seed)
                found[name] = left * scales[0] * scales[1], right
                continue
        few = isinstance(gradient, Rows) and rank <= gradient.values.shape[1] < gradient.width
        matrix = gradient.values if isinstance(gradient, Rows) and few else dense(gradient)
        waiting.setdefault((matrix.shape[1], matrix.shape[2], rank), {})[name] = matrix
    for (d1, d2, rank), group in waiting.items():
        tall = d1 > d2 and rank == 1
        stacked = _stacked(list(group.values()), swapped=tall)
        scale = _scales(stacked)
        stacked /= scale
        if rank == 1:
            left, right = _dominant(stacked, tall, seed)
        else:
            left, right = _iterate(_explicit(stacked), stacked, rank, seed)
        size = len(stacked) // len(group)
        found |= zip(group, zip((left * scale).split(size), right.split(size), strict=True), strict=True)
    return whole | {name: _spread(gradients[name], factors) for name, factors in found.items()}


def _stacked(matrices: list[Tensor], swapped: bool) -> Tensor:
    """Batches [B, d1, d2] of several layers as one [B x layers, d1, d2], contiguous; `swapped`: as [B x layers, d2, d1]."""
    return torch.cat([matrix.mT for matrix in matrices] if swapped else matrices).contiguous()


def _scales(batch: Tensor) -> Tensor:
    """Powers of two, one an example [B, 1, 1], near the largest number of each example of [B, n, m].

    The iterations multiply up to four of them: unless they are divided by this, gradients near 1e-10 or 1e+10 leave what
    float32 can hold. A power of two changes no digit.
    """
    _, exponents = torch.frexp(torch.maximum(batch.amax((1, 2), keepdim=True), -batch.amin((1, 2), keepdim=True)))
    return torch.ldexp(torch.ones_like(batch[:, :1, :1]), exponents)


def _spread(gradient: LayerGradient, factors: Factors) -> Factors:
    """Factors of a gradient's nonzero rows as factors of the whole."""
    left, right = factors
    if isinstance(gradient, Rows) and left.shape[1] == gradient.columns.shape[1] != gradient.width:
        return gradient.spread(left), right
    return factors


def _dominant(short: Tensor, tall: bool, seed: int) -> Factors:
    """C = 1: power iteration with the smaller of G G^T and G^T G.

    Either way, as with pairs, the right vector is that of (G^T G)^9 times the start. Vectors are rows here: on a CPU a batch of
    products of a row with a contiguous matrix takes a fraction of the time of as many with a column.

    Args:
        short: G [B, m, n], m <= n, contiguous; where `tall`, G^T.
        tall: G is [n, m].
        seed: of the start.
    """
    gram = short @ short.mT  # [B, m, m]
    onto = gram if tall else short
    begin = onto @ _start(onto.shape[2], 1, seed, short.device)[0, :, 0]  # [B, m]
    first = _powers(begin.unsqueeze(1), gram)  # [B, 1, m] @ [B, m, m]
    second = first @ short  # [B, 1, m] @ [B, m, n], its length the singular value
    if tall:
        return second.mT, first.mT
    return (first @ gram / _norm(second)).mT, _normal(second).mT  # G v = G G^T u / |G^T u|


def _dominant_pair(x: Tensor, dy: Tensor, seed: int) -> Factors:
    """The same for G = X^T dY without forming it, through X X^T and dY dY^T [B, T, T]."""
    inputs, outputs = x @ x.mT, dy @ dy.mT  # whose rounding errors only turn the directions, which the sides then meet
    begin = dy @ _start(dy.shape[2], 1, seed, dy.device)[0, :, 0]  # [B, T]
    row = _normal(_powers(begin.unsqueeze(1), inputs, outputs) @ inputs)  # [B, 1, T]
    right = _normal(row @ dy)  # [B, 1, T] @ [B, T, d2]
    return (right @ dy.mT @ x).mT, right.mT  # G v = X^T dY v


def _powers(row: Tensor, *matrices: Tensor) -> Tensor:
    """[B, 1, n] times the product of [B, n, n], `SINGLE_ITERATIONS` times, of length one."""
    for _ in range(SINGLE_ITERATIONS):
        for matrix in matrices:
            row = row @ matrix
        row = _normal(row)
    return row


def _normal(row: Tensor) -> Tensor:
    """Vectors [B, 1, n] of length one; zero stays zero."""
    return row / _norm(row)


def _norm(row: Tensor) -> Tensor:
    """Lengths [B, 1, 1], none zero."""
    norms: Tensor = torch.linalg.vector_norm(row, dim=2, keepdim=True)
    return norms.clamp_min(torch.finfo(row.dtype).tiny)


@lru_cache(64)
def _start(side: int, rank: int, seed: int, device: torch.device) -> Tensor:
    """The start [1, side, c] of every example's iteration.

    Normal, not signs: a softmax head's gradients sum to zero over the classes, and a constant column would see nothing.
    """
    return random_normal("factors", side, rank, seed).to(device).unsqueeze(0)


Multiply = Callable[[Tensor], Tensor]


def _explicit(matrix: Tensor) -> tuple[Multiply, Multiply]:
    return lambda v: matrix @ v, lambda u: matrix.mT @ u


def _implicit(x: Tensor, dy: Tensor) -> tuple[Multiply, Multiply]:
    """G v = X^T (dY v) and G^T u = dY^T (X u), G never formed."""
    return lambda v: x.mT @ (dy @ v), lambda u: dy.mT @ (x @ u)


def _iterate(products: tuple[Multiply, Multiply], like: Tensor, rank: int, seed: int) -> Factors:
    """Block power iteration from one start for all examples; `like` [..., d2] gives width and device."""
    forward, backward = products
    right = orthonormal(_start(like.shape[-1], rank, seed, like.device))
    for _ in range(ITERATIONS):
        left = orthonormal(forward(right))  # [B, d1, d2] @ [B, d2, c] -> [B, d1, c]
        right = orthonormal(backward(left))  # [B, d2, d1] @ [B, d1, c] -> [B, d2, c]
    return forward(right), right


def orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns [B, n, c] by twice-repeated Gram-Schmidt; a column that depends on earlier ones becomes zero.

    A batched QR calls LAPACK once an example; this is c small products for the whole batch. Zeroing dependent columns
    keeps U V^T right for gradients of rank below c, where a QR would fill in directions of rounding noise.
    """
    columns: list[Tensor] = []
    for original in block.unbind(-1):
        column = original
        for previous in columns * 2:  # twice is enough (Kahan)
            column = column - previous * (previous * column).sum(-1, keepdim=True)
        norm = column.norm(dim=-1, keepdim=True)
        kept = norm > DEPENDENT * original.norm(dim=-1, keepdim=True)
        columns.append(torch.where(kept, column / norm.clamp_min(torch.finfo(column.dtype).tiny), 0.0))
    return torch.stack(columns, -1)
