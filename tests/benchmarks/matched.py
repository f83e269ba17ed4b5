"""Unlearning runs compared where they have forgotten equally much, seed by seed.

Axes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
NEAR = 0.35
"""Octaves between two weights whose runs are near enough to take their figures as on a straight line."""
MOST_RUNS = 12


class Bracket(NamedTuple):
    """Two weights of what stays, below and above the one that forgets as much as a level; that one at ``share`` of the way."""

    lower: float
    higher: float
    share: float


def bracket(forgotten: Callable[[float], float], level: float, start: float) -> Bracket | None:
    """How much what stays must weigh for an unlearning of a fixed length to end where it has forgotten as much as `level`.

    The whole run is matched, not a point on its way: in the first steps of Adam both losses overshoot, later what stays
    recovers while the records' loss still rises, so that two runs are not of the same age where they pass a level.

    Args:
        forgotten: mean loss of the records at the end of a run in which the rows that stay weigh so much; falls with it.
        level: what it is to be.
        start: the weight that is tried first.

    Returns:
        Two weights at most `NEAR` apart, both of which were run; None where `MOST_RUNS` are not enough.
    """
    octave, stride = math.log2(start), NEAR
    lower: tuple[float, float] | None = None  # log2 of a weight, and the loss beyond the level
    higher: tuple[float, float] | None = None
    for _ in range(MOST_RUNS):
        beyond = forgotten(2.0**octave) - level
        if beyond >= 0:
            lower = (octave, beyond)
        else:
            higher = (octave, beyond)
        if lower is None or higher is None:
            octave, stride = octave + math.copysign(stride, beyond), 2 * stride
        elif abs(higher[0] - lower[0]) > NEAR * (1 + 1e-9):
            octave = (lower[0] + higher[0]) / 2
        else:
            return Bracket(2.0 ** lower[0], 2.0 ** higher[0], lower[1] / (lower[1] - higher[1]))
    return None


class Difference(NamedTuple):
    """A mean of paired differences, and half its 95 % interval (Student's t)."""

    mean: float
    half: float

    @property
    def below(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.mean + self.half < 0

    @property
    def above(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.mean - self.half > 0


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Of ours minus theirs, seed by seed [S].

    Raises:
        ValueError: fewer than two seeds, or not as many of one as of the other.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"expected figures of the same 2 seeds or more, got {len(ours)} and {len(theirs)}")
    apart = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    error = apart.std(ddof=1) / len(apart) ** 0.5
    return Difference(float(apart.mean()), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(apart) - 1) * error))
