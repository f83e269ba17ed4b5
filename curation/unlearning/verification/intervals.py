"""Intervals of what is estimated from few records, and the tests that go with them.

Axes: n records, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 500
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A figure and its 95 % interval, from `n` records."""

    point: float
    low: float
    high: float
    n: int


def bootstrap(
    figure: Callable[..., float], samples: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """A figure of one or more samples, each resampled on its own; percentile interval.

    Args:
        figure: of as many arrays as there are samples.
        samples: float arrays, first axis the records.
        seed: of the resampling.
        resamples: how often.
    """
    draw = np.random.default_rng(seed)
    found = [figure(*(x[draw.integers(len(x), size=len(x))] for x in samples)) for _ in range(resamples)]
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(figure(*samples)), float(low), float(high), min(map(len, samples)))


class ForgetQuality(NamedTuple):
    """Two-sample Kolmogorov-Smirnov of truth ratios: of the unlearned model and of one that never saw the records."""

    statistic: Estimate
    """D with its interval: 0 = alike, 1 = apart; unlike p it does not fall with n."""
    p_value: float
    """TOFU's forget quality: above 0.05 the two cannot be told apart with so many records."""


def forget_quality(unlearned: np.ndarray, reference: np.ndarray, seed: int = 0) -> ForgetQuality:
    """KS of truth ratios [n] and [m]."""
    found = stats.ks_2samp(unlearned, reference)
    interval = bootstrap(_distance, [unlearned, reference], seed)
    return ForgetQuality(interval._replace(point=float(found.statistic)), float(found.pvalue))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of the two distribution functions, without the p-value, which costs most of scipy's."""
    seen = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(each), seen, side="right") / len(each) for each in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many there are (Holm's step-down), in the same order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def gap_in_seed_sds(figure: float, references: Sequence[float]) -> float:
    """How far a figure lies from that of retrained models, in standard deviations between their seeds.

    Raises:
        ValueError: fewer than two seeds.
    """
    if len(references) < 2:
        raise ValueError(f"expected the figures of at least 2 retrained models, got {len(references)}")
    spread = float(np.std(references, ddof=1))
    gap = figure - float(np.mean(references))
    return gap / spread if spread else float(np.sign(gap)) * float("inf") if gap else 0.0
