"""Rows that stand for the pool: each row of the pool should have one like it among those chosen, and the scores count too.

Axes: N rows that are allowed, m rows that are covered, D numbers of a vector, b candidates of a block.

    f(S) = (1 - quality) mean over rows j of max over i in S of (1 + cos(i, j)) / 2  +  quality sum over i in S of u_i / n

u_i in [0, 1] are the scores between their smallest and largest. f is monotone and submodular: adding the row with the largest
gain, again and again, is at least 1 - 1/e of the best there is. A gain only ever falls, so the last one known of a row bounds
it: rows are looked at in the order of these bounds, and few gains are computed (lazy greedy, the same rows as without).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from curation.errors import DataError
from curation.selection.budget import Budget
from curation.selection.pool import Pool
from curation.selection.similarity import unit
from curation.selection.strategies.base import Need, Selection, Strategy, chosen

BLOCK_NUMBERS = 2**22
"""Similarities computed at once: 16 MB."""


@dataclass(frozen=True)
class FacilityLocation(Strategy):
    """Lazy greedy; for large pools among candidates with high bounds, against a sample of the pool.

    Attributes:
        quality: what the scores weigh against coverage, in [0, 1]; 0 = coverage only.
        exact: pools of up to so many rows are covered whole, each row of them a candidate.
        sample: rows of a larger pool that are to be covered, drawn by the seed; the error of a mean over them is about
            1 / sqrt(sample). All rows stay candidates.
        together: gains computed at once; rows chosen do not depend on it.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})

    quality: float = 0.0
    exact: int = 20_000
    sample: int = 4_000
    together: int = 32

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: one is out of range.
        """
        if not 0 <= self.quality <= 1:
            raise ValueError(f"quality: expected 0 to 1, got {self.quality}")
        for name in ("exact", "sample", "together"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`."""
        if pool.vectors is None:
            raise DataError(self.problems(pool))
        rows = pool.rows()
        covered = rows
        if len(rows) > self.exact:
            draw = np.random.default_rng(seed).choice(len(rows), min(self.sample, len(rows)), replace=False)
            covered = rows[np.sort(draw)]
        quality = self.quality * _between(pool.scores[rows]) / budget.most(pool)
        gains: list[float] = []
        order = greedy(unit(pool.vectors[rows]), unit(pool.vectors[covered]), quality, 1 - self.quality, self.together, gains)
        taken = budget.take((rows[i] for i in order), pool.lengths)
        known = dict(zip(order_of(taken), gains, strict=False))
        reasons = [f"adds {known[row]:.3g} to how well the pool is covered" for row in taken.tolist()]
        return chosen(pool, taken, reasons, np.array([known[row] for row in taken.tolist()]))
