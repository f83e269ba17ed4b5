"""Rows that must not be chosen, with the reason and the row they are like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Exclusion:
    """One row.

    Attributes:
        row: its position in the pool.
        reason: in words.
        like: the id of the row it is like.
        similarity: of the two, in [0, 1].
        of: what that row is of: "target" or "evaluation"; None: of the pool, of which the row is a duplicate.
    """

    row: int
    reason: str
    like: str | int
    similarity: float
    of: str | None = None

    @property
    def kind(self) -> str:
        """What rows of this kind are counted as."""
        return "duplicates" if self.of is None else f"{self.of} rows"


def exclusion_table(exclusions: Iterable[Exclusion], names: pl.Series) -> pl.DataFrame:
    """Columns example_id, position, kind, reason, like (as text) and similarity: a line a row, its first reason, in pool order.

    Args:
        exclusions: in any order.
        names: ids of the pool's rows, N.
    """
    first: dict[int, Exclusion] = {}
    for one in exclusions:
        first.setdefault(one.row, one)
    rows = [first[row] for row in sorted(first)]
    return pl.DataFrame(
        {
            "example_id": names.gather([x.row for x in rows]),
            "position": pl.Series([x.row for x in rows], dtype=pl.Int64),
            "kind": pl.Series([x.kind for x in rows], dtype=pl.String),
            "reason": pl.Series([x.reason for x in rows], dtype=pl.String),
            "like": pl.Series([str(x.like) for x in rows], dtype=pl.String),
            "similarity": pl.Series([x.similarity for x in rows], dtype=pl.Float64),
        }
    )
