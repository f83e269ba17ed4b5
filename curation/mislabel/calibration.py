"""Probabilities out of leave-one-out scores, calibrated on the given labels.

Axes: N training rows, K classes.
"""

from __future__ import annotations

import numpy as np

from curation.mislabel.checks import check_labels, require_finite

# Pulls slope and offsets to zero as a few rows of evidence would: the likelihood alone has no maximum when every row is
# on its own side, or a class has no row.
PRIOR = 1e-3
STEPS = 50


def loo_probabilities(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Calibrate leave-one-out scores: softmax(slope * score + offset of the class), fitted to the given labels.

    No row's score knew its own label, so the K + 1 numbers are fitted to honest predictions, as they would be to those of
    a cross-validation. Maximum likelihood by Newton steps; a slope below zero (scores worse than chance) becomes zero,
    and the probabilities then are the frequencies of the classes.

    Args:
        scores: float [N, K], higher = more like the class; ``kernel_loo``'s.
        labels: int64 [N], codes.

    Returns:
        float64 [N, K], rows sum to 1; mean over the rows close to the frequencies of the labels.

    Raises:
        ValueError: shapes differ, a code is out of range or a score is not finite.
    """
    check_labels(labels, scores.shape[1], rows=len(scores))
    require_finite(scores, "scores")
    values = scores - scores.mean(axis=1, keepdims=True)  # what a row has in common for all classes says nothing
    spread = values.std()
    values = values / spread if spread > 0 else values
    offsets, slope = np.zeros(values.shape[1]), 1.0
    state = np.append(offsets, slope)
    best = _loss(values, labels, state)
    for _ in range(STEPS):
        gradient, hessian = _derivatives(values, labels, state)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and _loss(values, labels, state - size * step) > best:
            size /= 2
        if size <= 1e-6:
            break
        state = state - size * step
        previous, best = best, _loss(values, labels, state)
        if previous - best < 1e-12 * max(1.0, abs(best)):
            break
    if state[-1] < 0:
        counts = np.bincount(labels, minlength=values.shape[1]) + PRIOR
        return np.tile(counts / counts.sum(), (len(values), 1))
    return _softmax(state[-1] * values + state[:-1])


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    normalised: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return normalised


def _loss(values: np.ndarray, labels: np.ndarray, state: np.ndarray) -> float:
    """Mean negative log-likelihood and prior of ``state`` = (offsets [K], slope)."""
    logits = state[-1] * values + state[:-1]
    logits = logits - logits.max(axis=1, keepdims=True)
    likelihood = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(axis=1))
    return float(-likelihood.mean() + 0.5 * PRIOR * np.square(state).sum() / len(labels))


def _derivatives(values: np.ndarray, labels: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [K + 1] and Hessian [K + 1, K + 1] of :func:`_loss`."""
    rows, classes = values.shape
    p = _softmax(state[-1] * values + state[:-1])
    residual = p.copy()
    residual[np.arange(rows), labels] -= 1.0
    gradient = np.append(residual.sum(axis=0), (residual * values).sum())
    weighted = p * values  # [N, K]
    own = weighted.sum(axis=1, keepdims=True)  # [N, 1]
    hessian = np.empty((classes + 1, classes + 1))
    hessian[:classes, :classes] = np.diag(p.sum(axis=0)) - p.T @ p
    hessian[:classes, classes] = hessian[classes, :classes] = (weighted - p * own).sum(axis=0)
    hessian[classes, classes] = (weighted * values).sum() - np.square(own).sum()
    return (gradient + PRIOR * state) / rows, (hessian + PRIOR * np.eye(classes + 1)) / rows
