"""Unlearning runs compared where they have forgotten equally much, seed by seed.

Axes: S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Stop(NamedTuple):
    """A point of a curve: between its points ``after - 1`` and ``after``, at ``share`` of the way."""

    after: int
    share: float


def cheapest_stop(forgotten: Sequence[float], retained: Sequence[float], level: float) -> Stop | None:
    """Where an unlearning is best ended: the lowest loss of what stays among all points that have forgotten enough.

    The first steps of Adam overshoot, in both losses, so that where a level is reached first is not where anybody ends.

    Args:
        forgotten: mean loss of the records along the run; begins below ``level``.
        retained: mean loss of rows that stay, at the same points.
        level: how high the records' loss must be; between two points both losses are on a straight line.

    Returns:
        The point; None where the level is not reached.

    Raises:
        ValueError: the run begins at the level or above.
    """
    if forgotten[0] >= level:
        raise ValueError(f"expected a curve that begins below {level:.3g}, got {forgotten[0]:.3g}")
    stops: list[tuple[float, Stop]] = []
    for after in range(1, len(forgotten)):
        before, here = forgotten[after - 1], forgotten[after]
        shares = [1.0] * (here >= level)
        if (before >= level) != (here >= level):
            shares.append((level - before) / (here - before))
        for share in shares:
            stops.append(((1 - share) * retained[after - 1] + share * retained[after], Stop(after, share)))
    return min(stops)[1] if stops else None


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
