"""Rows that must not be chosen, with the reason and the row they are like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Exclusion:
    """One row.

    Attributes:
        row: its position in the pool.
        reason: in words.
        like: the id of the row it is like; None where the reason is its own.
        similarity: of the two, in [0, 1]; of a harmful row its score instead, below zero.
    """

    row: int
    reason: str
    like: str | int | None = None
    similarity: float | None = None


def allowed(count: int, exclusions: Iterable[Exclusion]) -> np.ndarray:
    """Which of `count` rows none of the exclusions is of, bool [N]."""
    found = np.ones(count, dtype=bool)
    found[[x.row for x in exclusions]] = False
    return found


def exclusion_table(exclusions: Iterable[Exclusion], ids: Sequence[str] | Sequence[int]) -> pl.DataFrame:
    """Columns example_id, reason, like (as text), similarity: a line a row, its first reason, in pool order."""
    first: dict[int, Exclusion] = {}
    for one in exclusions:
        first.setdefault(one.row, one)
    rows = [first[row] for row in sorted(first)]
    return pl.DataFrame(
        {
            "example_id": pl.Series(
                [ids[x.row] for x in rows], dtype=pl.String if isinstance(ids[0], str) else pl.Int64
            ),
            "reason": pl.Series([x.reason for x in rows], dtype=pl.String),
            "like": pl.Series([None if x.like is None else str(x.like) for x in rows], dtype=pl.String),
            "similarity": pl.Series([x.similarity for x in rows], dtype=pl.Float64),
        }
    )
