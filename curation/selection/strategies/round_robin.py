"""The target groups take turns, so that a group with small scores is served as well as one with large ones.

Axes: G target groups, k strongest rows kept a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curation.errors import DataError
from curation.selection.budget import Budget
from curation.selection.pool import Best, Pool
from curation.selection.strategies.base import Need, Selection, Strategy, chosen

Turns = Literal["equal", "size"]


@dataclass(frozen=True)
class RoundRobin(Strategy):
    """Each group in turn takes its strongest row that is still free, as AirRep and LESS serve several tasks.

    Attributes:
        turns: `equal`, one after the other; `size`, as often as the group has target rows, so that where the groups are labels
            the selection has about the shares of the target.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"best"})

    turns: Turns = "equal"

    def __post_init__(self) -> None:
        """Check the option.

        Raises:
            ValueError: there are no such turns.
        """
        if self.turns not in ("equal", "size"):
            raise ValueError(f"turns: expected equal or size, got {self.turns!r}")

    def problems(self, pool: Pool) -> list[str]:
        """See `Strategy`."""
        unknown = self.turns == "size" and pool.best is not None and pool.best.sizes is None
        lacks = "RoundRobin with turns: size needs the target rows of each group (Best.sizes), which are not known"
        return super().problems(pool) + ([lacks] if unknown else [])

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`.

        Raises:
            DataError: the groups' lists of strongest rows end before the budget.
        """
        best = pool.best
        if best is None:
            raise DataError(self.problems(pool))
        by: dict[int, tuple[str, float]] = {}
        taken = budget.take(_taken(best, self._sizes(best), pool.allowed, by), pool.lengths)
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

    def _sizes(self, best: Best) -> np.ndarray:
        """What the groups' turns are in proportion to, int64 [G]."""
        ones: np.ndarray = np.ones(len(best.groups), dtype=np.int64)
        return ones if self.turns == "equal" or best.sizes is None else best.sizes


def _taken(best: Best, sizes: np.ndarray, allowed: np.ndarray, by: dict[int, tuple[str, float]]) -> Iterator[int]:
    """Rows in the order they are taken; `by` gets the group and score of each.

    The next turn is that of the group furthest behind its share of the turns, the first of several; one without a free row is
    out, and the others' shares are of their own turns.
    """
    place, turns, left = [0] * len(sizes), np.zeros_like(sizes), np.ones(len(sizes), dtype=bool)
    behind = sizes.astype(np.float64)  # its size x (turns + 1) less all sizes x its own turns, whole numbers
    while left.any():
        group = int(behind.argmax())
        rows = best.rows[group]
        while place[group] < len(rows) and (rows[place[group]] in by or not allowed[rows[place[group]]]):
            place[group] += 1
        if place[group] == len(rows):
            left[group] = False
            behind = np.where(left, sizes * (turns[left].sum() + 1) - sizes[left].sum() * turns, -np.inf)
            continue
        row = int(rows[place[group]])
        by[row] = best.groups[group], float(best.scores[group, place[group]])
        behind += sizes
        behind[group] -= sizes[left].sum()
        turns[group] += 1
        yield row
