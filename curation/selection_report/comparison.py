"""Figures of trainings that were repeated with several seeds.

Axes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class OverSeeds:
    """A mean over seeds and its 95 % interval by Student's t.

    Attributes:
        mean: of the values.
        low: lower end; None with fewer than two seeds.
        high: upper end.
        values: S, in the order of the seeds.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    def to_json(self, seeds: Sequence[int]) -> dict[str, Any]:
        """As ``summary.json`` has it; ``seeds``: S."""
        by_seed = {str(seed): value for seed, value in zip(seeds, self.values, strict=True)}
        return {"mean": self.mean, "low": self.low, "high": self.high, "by_seed": by_seed}


def over_seeds(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> OverSeeds:
    """The mean of ``values``, one a seed, with its interval: how it would vary with other seeds, on the same rows.

    Args:
        values: S of them.
        within: what a value can be at all; the interval does not leave it.

    Raises:
        ValueError: there are none.
    """
    found: np.ndarray = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ValueError("over_seeds: expected a value or more, got none")
    mean = float(found.mean())
    if len(found) < 2:
        return OverSeeds(mean, None, None, tuple(found.tolist()))
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    low, high = max(within[0], mean - half), min(within[1], mean + half)
    return OverSeeds(mean, low, high, tuple(found.tolist()))


def advantages(rates: Mapping[str, Sequence[float]], of: str) -> dict[str, OverSeeds]:
    """How much better ``of`` is than each of the others, seed by seed; positive = better.

    Args:
        rates: name -> a rate for each seed, the same seeds in the same order.
        of: one of the names.
    """
    mine: np.ndarray = np.asarray(rates[of], dtype=np.float64)
    return {name: over_seeds((mine - np.asarray(theirs)).tolist()) for name, theirs in rates.items() if name != of}
