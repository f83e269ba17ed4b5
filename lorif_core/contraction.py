"""P_in^T X^T dY P_out, in the order that costs least, as a pair or as the matrix.

Axes: B examples, T positions, a / b input and output side of a layer, d1 / d2 the projected sides, f = a / d1 = b / d2.

Per example the layer itself costs T a b. Projecting X costs T a d1, projecting dY T b d2, which for b = 4 a is as much
again as the layer. So only the narrower side is projected before the product over T: X at the forward pass where a <= b
(nothing else is kept), dY at the backward pass where b < a (then X itself is kept). Where an example has fewer positions
than the matrix has rows, the pair is handed on and the matrix never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorif_core.layers import PairedRule
from lorif_core.lookup import Lookup, Rows

Sides = tuple[Tensor | Lookup | None, Tensor | None]
"""(P_in [a, d1], P_out [b, d2]), None = identity; a `Lookup` where the inputs are ids."""
Pair = tuple[Tensor, Tensor]
"""(X P_in [B, T, d1], dY P_out [B, T, d2]); their product over T is the projected gradient."""
LayerGradient = Pair | Rows | Tensor
"""A pair, the rows that are not zero, or the projected gradient [B, d1, d2] itself."""


def keeps_input(rule: PairedRule, sides: Sides, rows: int, columns: int) -> bool:
    """Whether the layer's own input is kept, to be contracted with a projected dY (b < a, both sides projected)."""
    return rule.plain and columns < rows and all(matrix is not None for matrix in sides)


def contract(projected: Tensor, dy: Tensor, p_out: Tensor | None) -> LayerGradient:
    """From X P_in [B, T, d1] and dY [B, T, b]."""
    positions, d1, b = projected.shape[1], projected.shape[2], dy.shape[2]
    d2 = b if p_out is None else p_out.shape[1]
    if positions < min(d1, d2):
        return projected, project(dy, p_out)
    if p_out is None or positions * b * d2 + positions * d1 * d2 < positions * d1 * b + d1 * b * d2:
        return projected.mT @ project(dy, p_out)  # [B, d1, T] @ [B, T, d2] -> [B, d1, d2]
    return projected.mT @ dy @ p_out  # [B, d1, T] @ [B, T, b] -> [B, d1, b] @ [b, d2] -> [B, d1, d2]


def contract_input(rule: PairedRule, module: nn.Module, x: Tensor, dy: Tensor, sides: Sides) -> LayerGradient:
    """From the layer's own input x [B, ..., in] and dY [B, T, b]; the bias row is the sum of dY over positions."""
    p_in, p_out = sides
    if not isinstance(p_in, Tensor) or p_out is None:
        raise TypeError("an input is kept only where both sides are projected by matrices")
    narrow = dy @ p_out  # [B, T, b] @ [b, d2] -> [B, T, d2]
    if dy.shape[1] < min(p_in.shape[1], p_out.shape[1]):
        return rule.inputs(module, x, p_in), narrow
    columns = narrow.mT @ x.float().reshape(len(x), -1, x.shape[-1])  # [B, d2, T] @ [B, T, in] -> [B, d2, in]
    gradient = columns @ p_in[: columns.shape[2]]  # [B, d2, in] @ [in, d1] -> [B, d2, d1]
    if len(p_in) > columns.shape[2]:
        gradient = torch.addcmul(gradient, narrow.sum(1).unsqueeze(2), p_in[-1])  # [B, d2, 1] * [d1]
    return gradient.mT


def project(x: Tensor, matrix: Tensor | None) -> Tensor:
    """X P: [..., n] -> [..., d]; X itself where the projection is the identity."""
    return x if matrix is None else x @ matrix


def project_both(gradient: Tensor, sides: Sides) -> Tensor:
    """P_in^T G P_out: [B, a, b] -> [B, d1, d2] (papers/lorif eq. 4)."""
    p_in, p_out = sides
    gradient = p_in.T @ gradient if isinstance(p_in, Tensor) else gradient  # [d1, a] @ [B, a, b] -> [B, d1, b]
    return project(gradient, p_out)  # [B, d1, b] @ [b, d2] -> [B, d1, d2]


def dense(gradient: LayerGradient) -> Tensor:
    """The projected gradient [B, d1, d2] of a pair, its rows, or a whole matrix."""
    if isinstance(gradient, Tensor):
        return gradient
    if isinstance(gradient, Rows):
        return gradient.dense()
    x, dy = gradient
    return x.mT @ dy  # [B, d1, T] @ [B, T, d2] -> [B, d1, d2]


def energy(gradient: LayerGradient) -> Tensor:
    """Squared norms [B] of the projected gradients, a pair's without forming the matrix."""
    if isinstance(gradient, Rows):
        gradient = gradient.values
    if isinstance(gradient, Tensor):
        norms: Tensor = torch.linalg.vector_norm(gradient, dim=(1, 2))
        return norms.square()
    x, dy = gradient
    return ((x @ x.mT) * (dy @ dy.mT)).sum((1, 2))  # [B, T, T]


def merge(calls: list[LayerGradient]) -> LayerGradient:
    """The gradient of a layer called several times: the sum, of pairs by joining their positions."""
    if len(calls) == 1:
        return calls[0]
    pairs = [call for call in calls if isinstance(call, tuple)]
    if len(pairs) == len(calls):
        return torch.cat([x for x, _ in pairs], 1), torch.cat([dy for _, dy in pairs], 1)
    return torch.stack([dense(call) for call in calls]).sum(0)
