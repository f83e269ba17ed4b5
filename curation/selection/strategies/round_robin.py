"""The target groups take turns, so that a group with small scores is served as well as one with large ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curation.errors import DataError
from curation.selection.budget import Budget
from curation.selection.pool import Best, Pool
from curation.selection.strategies.base import Need, Selection, Strategy, chosen


@dataclass(frozen=True)
class RoundRobin(Strategy):
    """Each group in turn takes its strongest row that is still free, as AirRep and LESS serve several tasks."""

    needs: ClassVar[frozenset[Need]] = frozenset({"best"})

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`.

        Raises:
            DataError: the groups' lists of strongest rows end before the budget.
        """
        best = pool.best
        if best is None:
            raise DataError(self.problems(pool))
        by: dict[int, tuple[str, float]] = {}
        taken = budget.take(_turns(best, pool.allowed, by), pool.lengths)
        longest = int(pool.lengths.max()) if budget.tokens is not None else 1
        if len(taken) < len(pool.rows()) and budget.left(taken, pool.lengths) >= longest:
            size = f"{budget.rows:,} rows" if budget.rows is not None else f"{budget.tokens:,} tokens"
            raise DataError(
                [
                    f"the {len(best.groups):,} target groups' {best.rows.shape[1]:,} strongest rows each hold {len(taken):,} that "
                    f"are allowed, fewer than the budget of {size}: keep more rows a group (k) when scores are aggregated"
                ]
            )
        reasons = [f"taken for the target group {by[row][0]!r}, score {by[row][1]:.4g}" for row in taken.tolist()]
        return chosen(pool, taken, reasons, np.array([by[row][1] for row in taken.tolist()]))


def _turns(best: Best, allowed: np.ndarray, by: dict[int, tuple[str, float]]) -> Iterator[int]:
    """Rows in the order they are taken; `by` gets the group and score of each."""
    place = [0] * len(best.groups)
    more = True
    while more:
        more = False
        for group, name in enumerate(best.groups):
            rows = best.rows[group]
            while place[group] < len(rows) and (rows[place[group]] in by or not allowed[rows[place[group]]]):
                place[group] += 1
            if place[group] < len(rows):
                more, row = True, int(rows[place[group]])
                by[row] = name, float(best.scores[group, place[group]])
                yield row
