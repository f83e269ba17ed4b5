"""Removing rows from a linear head by one Newton step on the loss of the rows that stay (papers' notes S6, 2512.12572).

Axes: N rows the head was fitted to, k of them to go, d inputs of the head (the bias is a column of ones), K classes.

For H the Hessian of the summed loss of all rows, H_T that of the rows to go and g_T the sum of their gradients,

    theta_new = theta + (H - H_T)^-1 g_T,

the Newton step from theta on the loss without them. Its distance from the head fitted anew falls as k d / N^2, that of the
influence function (H in place of H - H_T) is several times larger.

A head that was not trained to its optimum has a gradient g there. What training left undone it would leave undone without the
rows, too, so that g is held and not made up for: the loss is that of the rows that stay, minus <g, theta>, plus the ridge
(l2 / 2) |theta_new - theta|^2. Where training had reached the optimum with the penalty (l2 / 2) |theta|^2, that is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from curation.errors import TrainingError

MOST_PARAMETERS = 8192
"""Of a head: its Hessian has that many rows and columns."""
BAND = (0.4, 15.0)
"""Least and largest mean of error / (k (K - 1) d / N^2) measured (two to six classes, k from 8), of features with mean square 1."""


@dataclass(frozen=True)
class Removal:
    """A head without the rows.

    Attributes:
        weight: float64 [K, d].
        step: Euclidean norm of the change.
        left: norm of the Newton step that would come next: the distance from the optimum, to within a few per cent where it
            is far below `step`. As long as that where one step does not do.
        gradient: norm of the remaining rows' gradient after the step; 0 at their optimum.
    """

    weight: Tensor
    step: float
    left: float
    gradient: float


def newton_removal(features: Tensor, codes: Tensor, weight: Tensor, keep: Tensor, l2: float, steps: int = 1) -> Removal:
    """Take the rows that are not kept out of a softmax head.

    Args:
        features: the head's inputs [N, d], a column of ones last.
        codes: class codes int64 [N].
        weight: the head [K, d].
        keep: bool [N].
        l2: > 0, of the summed loss: what the head was trained with, or a damping; without it a softmax head has no single
            optimum.
        steps: Newton steps; one is the paper's, a few more reach the optimum.

    Raises:
        TrainingError: nothing is kept, l2 is not positive, or the head is too large.
    """
    problems = size_problems(*weight.shape)
    if not bool(keep.any()):
        problems.insert(0, "no row is kept")
    if not l2 > 0:
        problems.insert(0, f"l2 must be positive, got {l2}")
    if problems:
        raise TrainingError(f"newton step: {'; '.join(problems)}")
    features, begin = features.double(), weight.double()
    x, y, found = features[keep], codes[keep], begin.clone()
    held = _gradient(features, codes, begin)

    def step() -> tuple[Tensor, Tensor]:
        gradient = _gradient(x, y, found) - held + l2 * (found - begin)  # [K, d]
        return torch.linalg.solve(_hessian(x, found, l2), gradient.flatten()).view_as(found), gradient

    for _ in range(steps):
        found = found - step()[0]
    left, gradient = step()
    return Removal(found, float((found - begin).norm()), float(left.norm()), float(gradient.norm()))


def predicted_error(features: Tensor, classes: int, gone: int) -> tuple[float, float]:
    """Between what bounds |theta_new - theta fitted anew| is to be expected: `BAND` times k (K - 1) d / N^2.

    Limitations: it is a mean over which rows go, on well-conditioned features; of some rows it is a tenth, of a head that is
    sure of nearly every row many times that. `Removal.left` is measured, not predicted.

    Args:
        features: the head's inputs [N, d]; the bounds are in the unit of one over theirs.
        classes: K.
        gone: k.
    """
    rows, width = features.shape
    scale = gone * (classes - 1) * width / rows**2 / max(float(features.double().square().mean().sqrt()), 1e-12)
    return BAND[0] * scale, BAND[1] * scale


def size_problems(classes: int, width: int) -> list[str]:
    """Why a head [K, d] is too large for its Hessian: nothing, or one sentence."""
    size = classes * width
    if size <= MOST_PARAMETERS:
        return []
    return [
        f"the head has {classes:,} x {width:,} = {size:,} parameters and its Hessian {8 * size**2 / 2**30:,.1f} GiB; expected at "
        f"most {MOST_PARAMETERS:,} parameters"
    ]


def _gradient(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Of the summed cross entropy [K, d]."""
    p = (x @ weight.T).softmax(1)  # [N, d] @ [d, K] -> [N, K]
    return (p - functional.one_hot(y, len(weight)).double()).T @ x  # [K, N] @ [N, d] -> [K, d]


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
