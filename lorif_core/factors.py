"""Rank-c factors of a batch of per-example gradients: G ~ U V^T, U [d1, c], V [d2, c].

Axes: B examples, T positions, d1 / d2 projected sides, c factor rank.

Exact where it can be (one position: the two vectors themselves), otherwise a block power iteration of every example at once
(papers/lorif.md 3.3), on X and dY without ever forming G when T < min(d1, d2), on its nonzero rows where X are ids. The
singular values sit in U, the columns of V are orthonormal. The start is the same for every example, so the factors do not
depend on the batch an example comes in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorif_core.contraction import LayerGradient, dense
from lorif_core.lookup import Rows
from lorif_core.projections import random_normal

Factors = tuple[Tensor, Tensor]
"""(left [B, d1, c], right [B, d2, c]), float32."""
ITERATIONS = 16
"""Of the block iteration for c > 1; c = 1 takes 8 (papers/lorif.md 3.3)."""
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
    scales: dict[str, Tensor | float] = {}
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
            (x, x_scale), (dy, dy_scale) = _moderate(x), _moderate(dy)
            if positions < smallest and rank < smallest:
                left, right = _dominant_pair(x, dy, seed) if rank == 1 else _iterate(_implicit(x, dy), dy, rank, seed)
                found[name] = left * x_scale * dy_scale, right
                continue
            gradient, scales[name] = (x, dy), x_scale * dy_scale
        few = isinstance(gradient, Rows) and rank <= gradient.values.shape[1] < gradient.width
        matrix, scale = _moderate(gradient.values if isinstance(gradient, Rows) and few else dense(gradient))
        scales[name] = scale * scales.get(name, 1.0)
        waiting.setdefault((matrix.shape[1], matrix.shape[2], rank), {})[name] = matrix
    for (_, _, rank), group in waiting.items():
        stacked = torch.cat(list(group.values()))  # [B x layers, d1, d2]
        left, right = _dominant(stacked, seed) if rank == 1 else _iterate(_explicit(stacked), stacked, rank, seed)
        size = len(stacked) // len(group)
        parts = zip(group, left.split(size), right.split(size), strict=True)
        found |= {name: (u * scales[name], v) for name, u, v in parts}
    return whole | {name: _spread(gradients[name], factors) for name, factors in found.items()}


def _moderate(batch: Tensor) -> tuple[Tensor, Tensor]:
    """A batch [B, n, m] over powers of two, one an example [B, 1, 1], that bring its largest number near one.

    The iterations multiply up to four of them: without this, gradients near 1e-10 or 1e+10 leave what float32 can hold. A power
    of two changes no digit.
    """
    _, exponents = torch.frexp(batch.abs().amax((1, 2), keepdim=True))
    scale = torch.ldexp(torch.ones_like(batch[:, :1, :1]), exponents)
    return batch / scale, scale


def _spread(gradient: LayerGradient, factors: Factors) -> Factors:
    """Factors of a gradient's nonzero rows as factors of the whole."""
    left, right = factors
    if isinstance(gradient, Rows) and left.shape[1] == gradient.columns.shape[1] != gradient.width:
        return gradient.spread(left), right
    return factors


def _dominant(matrix: Tensor, seed: int) -> Factors:
    """C = 1: the iterations as one product with (G G^T)^8 (or (G^T G)^8), three squarings of the smaller Gram.

    Either way, as with pairs, the right vector is that of (G^T G)^9 times the start.
    """
    start = _start(matrix.shape[2], 1, seed, matrix.device)
    if matrix.shape[1] > matrix.shape[2]:
        gram = matrix.mT @ matrix  # [B, d2, d2]
        right = unit(_eighth_power(gram) @ (gram @ start))  # [B, d2, d2] @ [B, d2, 1]
        return matrix @ right, right
    gram = matrix @ matrix.mT  # [B, d1, d1]
    left = unit(_eighth_power(gram) @ (matrix @ start))  # [B, d1, d1] @ [B, d1, 1]
    right = matrix.mT @ left  # [B, d2, 1], its length the singular value
    length = right.norm(dim=1, keepdim=True).clamp_min(torch.finfo(right.dtype).tiny)
    return gram @ (left / length), right / length  # G v = G G^T u / |G^T u|


def _dominant_pair(x: Tensor, dy: Tensor, seed: int) -> Factors:
    """The same for G = X^T dY without forming it, through the T x T matrix (dY dY^T)(X X^T)."""
    power = _eighth_power((dy @ dy.mT) @ (x @ x.mT))  # [B, T, T]
    left = x.mT @ (power @ (dy @ _start(dy.shape[2], 1, seed, dy.device)))  # [B, d1, T] @ [B, T, 1]
    right = unit(dy.mT @ (x @ unit(left)))
    return x.mT @ (dy @ right), right


def _eighth_power(square: Tensor) -> Tensor:
    """A multiple of M^8, scaled at every step so that nothing overflows or vanishes."""
    for _ in range(3):
        square = _scaled(square)
        square = square @ square
    return _scaled(square)


def _scaled(square: Tensor) -> Tensor:
    return square.div(square.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(square.dtype).tiny))


def unit(vector: Tensor) -> Tensor:
    """Vectors [B, n, 1] of length one; zero stays zero."""
    vector = _scaled(vector)
    return vector.div(vector.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny))


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
