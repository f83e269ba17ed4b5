"""The rows with the highest scores."""

from __future__ import annotations

from dataclasses import dataclass

from curation.selection.budget import Budget
from curation.selection.pool import Pool
from curation.selection.strategies.base import Selection, Strategy, chosen


@dataclass(frozen=True)
class TopK(Strategy):
    """By score, ties in pool order."""

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`."""
        rows = budget.take(pool.ranked(), pool.lengths)
        reasons = [f"score {pool.scores[row]:.4g}, number {rank} of {len(pool):,}" for rank, row in enumerate(rows, 1)]
        return chosen(pool, rows, reasons)
