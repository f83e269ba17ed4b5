"""The linear datamodeling score: do summed scores predict what retraining on a subset does? (papers/lorif.md 14).

Axes: Q queries, N training examples, M retrainings on subsets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class LDS(NamedTuple):
    """Mean over queries of the rank correlation, with a bootstrap interval over queries."""

    value: float
    low: float
    high: float
    per_query: NDArray[np.float64]
    """[Q]; NaN where a query's measure or prediction is constant, left out of the mean."""


def linear_datamodeling_score(
    scores: ArrayLike, masks: ArrayLike, losses: ArrayLike, *, bootstrap: int = 1000, seed: int = 0
) -> LDS:
    """Spearman correlation, over subsets, of summed scores and minus the loss after retraining on them.

    Args:
        scores: [Q, N], positive = proponent.
        masks: [M, N], true where the retraining kept the example.
        losses: [M, Q], each query's loss under each retraining, averaged over seeds.
        bootstrap: resamples of the queries for the 95 % interval.
        seed: of the resampling.

    Raises:
        ValueError: shapes do not fit.
    """
    table, kept, measured = (np.asarray(x, dtype=np.float64) for x in (scores, masks, losses))
    if table.shape[1] != kept.shape[1] or measured.shape != (len(kept), len(table)):
        raise ValueError(
            "expected scores [Q, N], masks [M, N] and losses [M, Q], "
            f"got {table.shape}, {kept.shape} and {measured.shape}"
        )
    predicted, actual = ranks(kept @ table.T), ranks(-measured)  # [M, N] @ [N, Q] -> [M, Q]
    predicted, actual = predicted - predicted.mean(0), actual - actual.mean(0)
    spread = np.sqrt((predicted**2).sum(0) * (actual**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        per_query = np.where(spread > 0, (predicted * actual).sum(0) / spread, np.nan)
    known = per_query[~np.isnan(per_query)]
    if not len(known):
        return LDS(float("nan"), float("nan"), float("nan"), per_query)
    resampled = np.random.default_rng(seed).choice(known, (bootstrap, len(known))).mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return LDS(float(known.mean()), float(low), float(high), per_query)


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the first axis of [M, Q], 0 = smallest, ties get their mean rank."""
    found = np.empty_like(values, dtype=np.float64)
    for column in range(values.shape[1]):
        _, inverse, counts = np.unique(values[:, column], return_inverse=True, return_counts=True)
        last = np.cumsum(counts) - 1
        found[:, column] = (last - (counts - 1) / 2)[inverse]
    return found
