"""Rows that hurt the target: training on them raises its loss.

Axes: N pool rows, n of them that hurt.
"""

from __future__ import annotations

import numpy as np
import polars as pl

REASON = "training on it raises the target's loss"


def harmful(mean: np.ndarray) -> np.ndarray:
    """Positions of the rows to exclude, worst first, ties in pool order, int64 [n].

    Args:
        mean: scores over all target rows, float [N] (`Scored.mean`): positive = proponent. Not a maximum, which tells what a row
            does for the group it helps most.
    """
    rows = np.flatnonzero(mean < 0)
    return rows[np.argsort(mean[rows], kind="stable")]


def harmful_table(rows: np.ndarray, names: pl.Series, mean: np.ndarray) -> pl.DataFrame:
    """Columns example_id, score (below zero) and reason, in the order of ``rows``.

    Args:
        rows: positions in the pool, int64 [n].
        names: ids of the pool's rows, N.
        mean: of `harmful`, [N].
    """
    return pl.DataFrame(
        {
            "example_id": names.gather(rows),
            "score": mean[rows].astype(np.float64),
            "reason": pl.Series([REASON] * len(rows), dtype=pl.String),
        }
    )
