"""The rows that can be chosen, and what is known of them.

Axes: N pool rows, G target groups, k strongest rows kept a group, D numbers of a row's vector.

A score is POSITIVE for a proponent: training on the row lowers the loss on the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from curation.errors import DataError
from curation.examples import name_rows_where


@dataclass(frozen=True)
class Best:
    """The strongest rows of each target group, strongest first, ties in pool order.

    Attributes:
        groups: names, G.
        rows: positions in the pool, int64 [G, k].
        scores: float32 [G, k]; positive = proponent.
        sizes: target rows of each group, int64 [G]; None where it is not known.
    """

    groups: list[str]
    rows: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray | None = None


@dataclass(frozen=True)
class Pool:
    """What every strategy sees; everything in pool order.

    Attributes:
        ids: of the rows, N, unique.
        scores: float32 [N], aggregated over the target groups; positive = proponent.
        lengths: tokens of each row, int64 [N], at least 1 (words where there is no tokenizer, 1 for images and features).
        allowed: bool [N]; False = excluded before (of the target, a duplicate, harmful).
        best: the strongest rows of each target group, for strategies that serve the groups in turn.
        columns: other columns, N rows, for quotas; None where there are none.
        vectors: float32 [N, D], embeddings or of stored factors, for what goes by similarity of rows.
    """

    ids: Sequence[str] | Sequence[int]
    scores: np.ndarray
    lengths: np.ndarray
    allowed: np.ndarray
    best: Best | None = None
    columns: pl.DataFrame | None = None
    vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse what is empty, of another number of rows, or not finite.

        Raises:
            DataError: all of it at once.
        """
        problems = self._problems()
        if problems:
            raise DataError(problems)

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def rows(self) -> np.ndarray:
        """Positions of the rows that are allowed, in pool order, int64."""
        return np.flatnonzero(self.allowed)

    def ranked(self, scores: np.ndarray | None = None) -> np.ndarray:
        """Positions of the rows that are allowed, highest score first, ties in pool order, int64.

        Args:
            scores: others than the pool's, [N].
        """
        rows = self.rows()
        return rows[np.argsort(-(self.scores if scores is None else scores)[rows], kind="stable")]

    def _problems(self) -> list[str]:
        count = len(self.ids)
        if not count:
            return ["the pool has no rows: there is nothing to choose from"]
        sizes: dict[str, np.ndarray | pl.DataFrame | None] = {
            "scores": self.scores,
            "lengths": self.lengths,
            "columns": self.columns,
            "vectors": self.vectors,
            "allowed": self.allowed,
        }
        problems = [
            f"the pool has {count:,} ids, but {len(x):,} rows of {name}: they must be of the same rows"
            for name, x in sizes.items()
            if x is not None and len(x) != count
        ]
        if problems:
            return problems
        finite = {"scores": np.isfinite(self.scores)}
        if self.vectors is not None:
            finite["vectors"] = np.isfinite(self.vectors).all(1)
        for name, good in finite.items():
            if not good.all():
                problems.append(f"{name} of the pool are not finite: {name_rows_where(self.ids, ~good)}")
        if (self.lengths < 1).any():
            problems.append(
                f"lengths below 1: {name_rows_where(self.ids, self.lengths < 1)}; every row takes from the budget"
            )
        if len(set(self.ids)) < count:
            problems.append(f"ids of the pool repeat: {count:,} rows have {len(set(self.ids)):,} ids")
        if not self.allowed.any():
            problems.append(f"all {count:,} rows of the pool are excluded: there is nothing to choose from")
        return problems
