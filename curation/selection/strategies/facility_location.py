"""Rows that stand for the pool: each row of the pool should have one like it among those chosen; scores may count too.

Axes: N rows that are allowed, n chosen, P parts.

Greedy on f of `curation.selection.greedy`, with bonus_i = quality u_i / n, u in [0, 1] the scores between their smallest and
largest: at least 1 - 1/e of the best f there is. A large pool goes through it twice (GreeDi): parts drawn at random propose
more than their share each, by sampled greedy, and the proposals are chosen from, against a sample of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np

from curation.errors import DataError
from curation.selection.budget import Budget
from curation.selection.greedy import TABLE_NUMBERS, greedy, sampled_greedy
from curation.selection.pool import Pool
from curation.selection.similarity import unit
from curation.selection.strategies.base import Need, Selection, Strategy, chosen

PROPOSALS = 3
"""Times its share that a part proposes: on 2,000 rows in five parts 0.99 of the exact greedy, with two 0.98."""
COVERED = 4
"""Rows of a large pool that are to be covered, for each one chosen and for each of a part: with few, greedy fits the sample."""


@dataclass(frozen=True)
class FacilityLocation(Strategy):
    """Lazy greedy; in parts for large pools.

    Attributes:
        quality: what scores weigh against coverage, in [0, 1]; 0 = coverage only.
        exact: rows that are all candidates, and all covered, at once; a larger pool is divided into parts of so many.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})

    quality: float = 0.0
    exact: int = 5_000

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: one is out of range.
        """
        if not 0 <= self.quality <= 1:
            raise ValueError(f"quality: expected 0 to 1, got {self.quality}")
        if self.exact < 2:
            raise ValueError(f"exact: expected at least 2 rows, got {self.exact}")

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`."""
        if pool.vectors is None:
            raise DataError(self.problems(pool))
        rows, most, generator = pool.rows(), budget.most(pool), np.random.default_rng(seed)
        vectors = unit(pool.vectors[rows])
        bonus = self.quality * _between(pool.scores[rows]) / most
        candidates = covered = np.arange(len(rows))
        if len(rows) > self.exact:
            parts = np.array_split(generator.permutation(len(rows)), -(-len(rows) // self.exact))
            share = -(-PROPOSALS * most // len(parts))
            proposed = [self._first(vectors, np.sort(part), bonus, share, generator) for part in parts]
            candidates = np.sort(np.concatenate(proposed))
            size = min(len(rows), COVERED * max(self.exact, most))
            covered = np.sort(generator.choice(len(rows), size, replace=False))
        gains: dict[int, float] = {}
        found = self._order(vectors[candidates], vectors[covered], bonus[candidates], most, generator)

        def order() -> Iterator[int]:
            for place, gain in found:
                row = int(rows[candidates[place]])
                gains[row] = gain
                yield row

        taken = budget.take(order(), pool.lengths)
        reasons = [f"adds {gains[row]:.3g} to how well the pool is covered" for row in taken.tolist()]
        return chosen(pool, taken, reasons, np.array([gains[row] for row in taken.tolist()]))

    def _first(
        self, vectors: np.ndarray, part: np.ndarray, bonus: np.ndarray, count: int, generator: np.random.Generator
    ) -> np.ndarray:
        """The first rows of a part, `count` or all, that sampled greedy takes."""
        found = sampled_greedy(vectors[part], vectors[part], 1 - self.quality, bonus[part], count, generator)
        return part[[row for row, _ in islice(found, count)]]

    def _order(
        self, candidates: np.ndarray, covered: np.ndarray, bonus: np.ndarray, count: int, generator: np.random.Generator
    ) -> Iterator[tuple[int, float]]:
        """Greedy's candidates and their gains: the exact one's where all similarities can be kept."""
        if len(candidates) * len(covered) <= TABLE_NUMBERS:
            return greedy(candidates, covered, 1 - self.quality, bonus)
        return sampled_greedy(candidates, covered, 1 - self.quality, bonus, count, generator)


def _between(scores: np.ndarray) -> np.ndarray:
    """Scores between their smallest (0) and largest (1), float64; all 0 where they are the same."""
    low, high = float(scores.min()), float(scores.max())
    return (scores.astype(np.float64) - low) / (high - low) if high > low else np.zeros(len(scores))
