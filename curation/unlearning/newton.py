"""Removing rows from a linear head by one Newton step on the loss of the rows that stay (papers' notes S6, 2512.12572).

Axes: N rows the head was fitted to, k of them to go, d inputs of the head (the bias is a column of ones), K classes.

For H the Hessian of the summed loss of all rows, H_T that of the rows to go, g_T the sum of their gradients and theta where the
gradient of the whole (nearly) vanishes,

    theta_new = theta + (H - H_T)^-1 g_T,   the Newton step from theta on the loss without them.

Its distance from the head fitted anew falls as k d / N^2, that of the influence function (H in place of H - H_T) is several
times larger. What a gradient at theta is not zero by is part of the step too: theta + (H - H_T)^-1 (g_T - g).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from curation.errors import TrainingError

MOST_PARAMETERS = 8192
"""Of a head: its Hessian has that many rows and columns."""


@dataclass(frozen=True)
class Removal:
    """A head without the rows.

    Attributes:
        weight: float64 [K, d].
        step: Euclidean norm of the change.
        gradient: norm of the remaining rows' gradient after the step; 0 at their optimum.
    """

    weight: Tensor
    step: float
    gradient: float


def newton_removal(features: Tensor, codes: Tensor, weight: Tensor, keep: Tensor, l2: float, steps: int = 1) -> Removal:
    """Take the rows that are not kept out of a softmax head.

    Minimises sum over kept rows of cross entropy + (l2 / 2) |weight|^2, from ``weight``.

    Args:
        features: the head's inputs [N, d], a column of ones last.
        codes: class codes int64 [N].
        weight: the head [K, d].
        keep: bool [N].
        l2: > 0: without it a softmax head has no single optimum.
        steps: Newton steps; one is the paper's, a few more reach the optimum.

    Raises:
        TrainingError: nothing is kept, l2 is not positive, or the head is too large.
    """
    problems = []
    if not bool(keep.any()):
        problems.append("no row is kept")
    if not l2 > 0:
        problems.append(f"l2 must be positive, got {l2}")
    if weight.numel() > MOST_PARAMETERS:
        problems.append(f"the head has {weight.numel()} parameters, expected at most {MOST_PARAMETERS}")
    if problems:
        raise TrainingError(f"newton step: {'; '.join(problems)}")
    x, y, found = features[keep].double(), codes[keep], weight.double().clone()
    for _ in range(steps):
        hessian, gradient = _hessian(x, found, l2), _gradient(x, y, found, l2)
        found -= torch.linalg.solve(hessian, gradient.flatten()).view_as(found)
    return Removal(found, float((found - weight.double()).norm()), float(_gradient(x, y, found, l2).norm()))


def _gradient(x: Tensor, y: Tensor, weight: Tensor, l2: float) -> Tensor:
    """[K, d]."""
    p = (x @ weight.T).softmax(1)  # [N, d] @ [d, K] -> [N, K]
    return (p - functional.one_hot(y, len(weight)).double()).T @ x + l2 * weight  # [K, N] @ [N, d] -> [K, d]


def _hessian(x: Tensor, weight: Tensor, l2: float) -> Tensor:
    """[K d, K d], class by class of rows: blocks X^T diag(p_a (1[a = b] - p_b)) X."""
    classes, width = weight.shape
    p = (x @ weight.T).softmax(1)
    found = x.new_zeros(classes, width, classes, width)
    for a in range(classes):
        for b in range(a, classes):
            weights = p[:, a] * (float(a == b) - p[:, b])  # [N]
            found[a, :, b] = x.T @ (weights[:, None] * x)  # [d, N] @ [N, d] -> [d, d]
            found[b, :, a] = found[a, :, b]
    matrix = found.view(classes * width, classes * width)
    matrix.diagonal().add_(l2)
    return matrix
