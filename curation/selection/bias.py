"""What a selection's scores may really be of: a few rows that everything points to, long rows, rows with large gradients.

Axes: Q queries (target rows or groups), k strongest rows of each, N pool rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr


@dataclass(frozen=True)
class Hubs:
    """How many queries share their strongest rows.

    Attributes:
        counts: queries that have each row among their k strongest, int64 [N].
        most: of them the largest, as a share of the queries, in (0, 1]; with one hub for all it is 1.
        distinct: different rows among the Q k, as a share of them, in (0, 1]; 1 = no two queries share any.
    """

    counts: np.ndarray
    most: float
    distinct: float

    def rows(self, number: int) -> np.ndarray:
        """The `number` rows with the highest counts, ties in pool order, int64."""
        return np.argsort(-self.counts, kind="stable")[:number]


@dataclass(frozen=True)
class Bias:
    """Spearman correlations in [-1, 1] of the scores; None where one of the two is the same for all rows.

    Attributes:
        hubs: see there.
        length: with the rows' lengths.
        norm: with the lengths of the rows' gradients.
    """

    hubs: Hubs
    length: float | None
    norm: float | None


def hubs(rows: np.ndarray, count: int) -> Hubs:
    """Of the strongest rows [Q, k] of queries (`Best.rows`, each row of it without repeats) over a pool of `count` rows."""
    counts = np.bincount(rows.ravel(), minlength=count)
    return Hubs(counts, float(counts.max() / len(rows)), float((counts > 0).sum() / rows.size))


def bias(rows: np.ndarray, scores: np.ndarray, lengths: np.ndarray, norms: np.ndarray | None = None) -> Bias:
    """What the scores go with.

    Args:
        rows: the queries' strongest, int64 [Q, k].
        scores: of the pool, [N].
        lengths: of its rows, [N].
        norms: of its rows' gradients, [N] (`lorif_core.norms.gradient_norms`); None = not known.
    """
    return Bias(
        hubs(rows, len(scores)), correlation(scores, lengths), None if norms is None else correlation(scores, norms)
    )


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's of two columns [N]; None where one does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
