"""Rows drawn in proportion to what they are worth, with weights, instead of a hard cut.

Axes: N rows that are allowed, n drawn.

    p_i ~ exp(z_i / temperature), z the scores in units of their spread;   q = (1 - uniform) p + uniform / N
    a row is drawn with probability pi_i = min(1, c q_i), sum pi_i = n, and its loss gets the weight p_i / pi_i

so that the weighted sum of the losses drawn is, on average over draws, that of all rows weighed by p (Horvitz-Thompson). Weights
are brought to a mean of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.selection.budget import Budget
from curation.selection.pool import Pool
from curation.selection.sampling import inclusion, systematic
from curation.selection.strategies.base import Selection, Strategy, chosen, weighted


@dataclass(frozen=True)
class Importance(Strategy):
    """Draws by score.

    Attributes:
        temperature: in standard deviations of the scores; small = nearly the rows with the highest ones.
        uniform: share of the draws that go by nothing, in [0, 1]: they bound how far a weight can rise.
    """

    temperature: float = 1.0
    uniform: float = 0.1

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: one is out of range.
        """
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")
        if not 0 <= self.uniform <= 1:
            raise ValueError(f"uniform: expected 0 to 1, got {self.uniform}")

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`. A budget in tokens is met on average, never passed."""
        rows = pool.rows()
        scores = pool.scores[rows].astype(np.float64)
        spread = float(scores.std())
        z = (scores - scores.max()) / spread if spread > 0 else np.zeros(len(scores))
        p = np.exp(z / self.temperature)
        p /= p.sum()
        q = (1 - self.uniform) * p + self.uniform / len(p)
        q = np.maximum(q, np.finfo(np.float64).tiny)
        count = budget.rows
        if count is None:
            count = max(1, min(len(rows), int((budget.tokens or 0) / float(q @ pool.lengths[rows]))))
        probabilities = inclusion(q, count)
        places = systematic(probabilities, count, np.random.default_rng(seed))
        places = places[np.argsort(-scores[places], kind="stable")]
        taken = budget.take(rows[places], pool.lengths)
        kept = places[np.isin(rows[places], taken)]
        reasons = [
            f"drawn with probability {x:.3g}, score {s:.4g}"
            for x, s in zip(probabilities[kept], scores[kept], strict=True)
        ]
        ratio = p[kept] / probabilities[kept]
        return weighted(chosen(pool, taken, reasons), ratio)
