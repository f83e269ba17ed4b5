"""What every strategy is: a way to choose rows of a pool within a budget.

Axes: N pool rows, n chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from curation.errors import DataError
from curation.examples import column_problems
from curation.selection.budget import Budget
from curation.selection.pool import Pool

Need = Literal["best", "vectors", "columns"]

WHAT = {
    "best": "the strongest rows of each target group (Pool.best)",
    "vectors": "a vector for every row (Pool.vectors)",
    "columns": "the pool's other columns (Pool.columns)",
}


@dataclass(frozen=True)
class Selection:
    """The rows chosen, in the order of their rank.

    Attributes:
        rows: positions in the pool, int64 [n], each once.
        scores: what ranked them, float64 [n].
        reasons: why each was chosen, in words, n.
        weights: of each row's loss in training, float64 [n], mean one; all ones but for importance sampling.
    """

    rows: np.ndarray
    scores: np.ndarray
    reasons: list[str]
    weights: np.ndarray

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)


class Strategy(ABC):
    """One way to choose; subclasses are frozen dataclasses of their options.

    The same pool, budget and seed give the same rows, however many shards, threads or batches made the scores.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    """What of a pool must be there beside ids, scores and lengths."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """The pool's columns it goes by, to be checked before anything is computed."""
        return ()

    def problems(self, pool: Pool) -> list[str]:
        """What the pool lacks for this strategy, one sentence each."""
        name = type(self).__name__
        lacks = [
            f"{name} needs {WHAT[x]}, which the pool does not have"
            for x in sorted(self.needs)
            if getattr(pool, x) is None
        ]
        if pool.columns is not None:
            lacks += column_problems(pool.columns, self.column_names, f"{name}, the pool")
        return lacks

    def select(self, pool: Pool, budget: Budget, seed: int = 0) -> Selection:
        """Choose.

        Args:
            pool: the rows; only those allowed are chosen.
            budget: how much.
            seed: of whatever is drawn.

        Raises:
            DataError: the pool lacks what this needs, or has less than the budget.
        """
        problems = self.problems(pool)
        if problems:
            raise DataError(problems)
        return self.choose(pool, budget.of(pool), seed)

    @abstractmethod
    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """`select`, of a pool that has what is needed and a budget of rows or tokens that it has."""


def chosen(pool: Pool, rows: np.ndarray, reasons: list[str], scores: np.ndarray | None = None) -> Selection:
    """Rows by rank, all of the same weight.

    Args:
        pool: that they are of.
        rows: int64 [n].
        reasons: n.
        scores: what ranked them, [n]; the pool's where left out.
    """
    ranking = pool.scores[rows] if scores is None else scores
    return Selection(rows, np.asarray(ranking, dtype=np.float64), reasons, np.ones(len(rows)))


def weighted(selection: Selection, weights: np.ndarray) -> Selection:
    """The same rows with other weights, [n], brought to a mean of one."""
    return replace(selection, weights=weights / weights.mean())
