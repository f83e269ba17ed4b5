"""Linear datamodeling score."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr


def lds(scores: np.ndarray, masks: np.ndarray, neg_loss: np.ndarray) -> float:
    """Mean over queries of Spearman over subsets of (summed scores of the subset, minus the measured loss).

    scores [Q, N]; masks [M, N], true where the example was trained on; neg_loss [M, Q], higher is better. A query whose
    ranks are constant has no correlation and is left out; NaN when that leaves none.
    """
    correlations = lds_per_query(scores, masks, neg_loss)
    correlations = correlations[~np.isnan(correlations)]
    return float(correlations.mean()) if len(correlations) else float("nan")


def lds_per_query(scores: np.ndarray, masks: np.ndarray, neg_loss: np.ndarray) -> np.ndarray:
    """Spearman correlation of every query, [Q] float64; NaN where it is not defined."""
    scores, neg_loss = np.asarray(scores, dtype=np.float64), np.asarray(neg_loss, dtype=np.float64)
    correlations = np.full(len(scores), np.nan)
    for q, row in enumerate(scores):
        predicted = np.array([row[np.asarray(mask, dtype=bool)].sum() for mask in masks])  # [M]
        if np.ptp(predicted) > 0 and np.ptp(neg_loss[:, q]) > 0:
            correlations[q] = spearmanr(predicted, neg_loss[:, q]).statistic
    return correlations
