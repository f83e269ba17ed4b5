"""Leave-one-out logits: one Newton step of the last layer away from each row.

Axes: N training rows, d inputs of the head and a one, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from curation.mislabel.checks import check_labels, require_finite
from curation.mislabel.kernel import SMALLEST_REST, blocks


def loo_logits(features: np.ndarray, logits: np.ndarray, labels: np.ndarray, *, damping: float = 0.1) -> np.ndarray:
    """The logits row i would have had without row i, were only the last layer trained again, by one Newton step.

    With p the softmax of the logits, w_i = mean over k of p_ik (1 - p_ik), h_i the head's inputs and a one,
    q_i = h_i^T (sum_j w_j h_j h_j^T + lam I)^-1 h_i and lam = damping * mean ||h||^2:
    z_-i = z_i + q_i / (1 - w_i q_i) * (p_i - y_i).

    Limitations: the inputs of the head stay as they are, though they too were fitted to row i; the curvature of all
    classes is taken to be the same.

    Args:
        features: float [N, d - 1], inputs of the head.
        logits: float [N, K].
        labels: int64 [N], codes.
        damping: positive, without unit.

    Returns:
        float64 [N, K].

    Raises:
        ValueError: an argument is out of its range, not finite, or shapes differ.
    """
    check_labels(labels, logits.shape[1], rows=len(logits))
    if features.ndim != 2 or len(features) != len(labels) or not len(labels):
        raise ValueError(f"features: expected shape [{len(labels)}, d], at least one row; got {list(features.shape)}")
    require_finite(features, "features")
    require_finite(logits, "logits")
    if not (np.isfinite(damping) and damping > 0):
        raise ValueError(f"damping must be positive, got {damping}")

    scores = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    codes = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    probabilities = torch.softmax(scores, dim=1)  # [N, K]
    weights = (probabilities * (1 - probabilities)).mean(dim=1)  # [N]

    def rows(block: slice) -> torch.Tensor:
        values = torch.from_numpy(np.asarray(features[block], dtype=np.float64))
        return torch.cat([values, torch.ones(len(values), 1, dtype=torch.float64)], dim=1)  # [B, d]

    curvature, square = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for block in blocks(len(labels)):
        inputs = rows(block)
        curvature = curvature + inputs.T @ (weights[block, None] * inputs)  # [d, B] @ [B, d]
        square = square + inputs.square().sum()
    curvature.diagonal().add_(damping * square / len(labels))
    factor = torch.linalg.cholesky(curvature)
    left_out = np.empty(scores.shape)
    for block in blocks(len(labels)):
        quadratic = torch.linalg.solve_triangular(factor, rows(block).T, upper=False).square().sum(dim=0)  # [B]
        rest = (1 - weights[block] * quadratic).clamp(min=SMALLEST_REST)
        targets = functional.one_hot(codes[block], scores.shape[1]).double()
        step = (quadratic / rest)[:, None] * (probabilities[block] - targets)  # [B, 1] * [B, K]
        left_out[block] = (scores[block] + step).numpy()
    return left_out
