"""What the measurements say of each record: does the model treat it as one that never saw it?

Axes: n records, S models retrained without them from different seeds.

A probe measures a loss of each record: directly, after the model was quantised, after it learned some of the records again.
The same probe is put to the retrained models. A record passes a probe when its gap to them is *shown* to be small (two
one-sided tests, Schuirmann 1987), not when it merely fails to be shown large:

    x_i = sqrt(loss_i),    gap_i = x_i - mean_s x_is,    |gap_i| + t sd / sqrt(S) <= tolerance * sd,

sd being the standard deviation between seeds, pooled over all records since a few seeds say little about one. Roots are
compared because the larger a loss is, the more it varies between seeds (measured: 0.2 at 4.6 nats, 1.0 at 9.6), and a pooled
deviation needs one that does not. The tolerance is declared before the run. A record that the model treated no differently
before unlearning cannot show anything.

A gap below zero is a memory only where the model does better than guessing blindly. Models that never saw a record may be
sure of a wrong answer, and noise then has a smaller loss than they: that is no memory, but not like them either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["CONSISTENT_WITH_RETRAIN", "RESIDUAL", "OVER_UNLEARNED", "NO_BASELINE", "UNTESTABLE"]
WORST_FIRST: tuple[Verdict, ...] = (
    "RESIDUAL",
    "OVER_UNLEARNED",
    "UNTESTABLE",
    "NO_BASELINE",
    "CONSISTENT_WITH_RETRAIN",
)
TOLERANCE = 6.0
"""Standard deviations between seeds. Of models retrained from one more seed, judged by 3 others with 21 records and all four
probes, these shares pass (up to 300 choices of 3; 23 models of the demo, 24 of 14 people and width 48):

    tolerance    5      6      6.5    7      8
    demo         0.84   0.96   0.98   0.99   1.00
    14 people    0.93   0.99   1.00   1.00   1.00

The losses' spread between seeds grows with their mean to the power 0.54 in both: roots have the same spread everywhere.
"""
CONFIDENCE = 0.95
"""Of each of the two one-sided tests."""
LEAST_SD = 1e-3
"""Of the roots: models that agree better than this are not told apart by how well they agree."""


@dataclass(frozen=True)
class Probe:
    """One way of asking for the records, put to three kinds of models.

    Attributes:
        before: loss of each record under the model as it was [n]; None where this probe was not put to it.
        after: under the unlearned model [n].
        retrained: under the models that never saw them [S, n]; S = 0: nothing was compared.
    """

    after: np.ndarray
    retrained: np.ndarray
    before: np.ndarray | None = None


@dataclass(frozen=True)
class Verdicts:
    """Of n records.

    Attributes:
        verdicts: of each.
        gaps: probe -> its gap in standard deviations between seeds, of the losses' roots [n]; negative = remembered. Empty
            where nothing was compared.
        margins: probe -> the gap that would just have passed [n], in the same unit.
        worst: the worst verdict of all: it decides.
    """

    verdicts: list[Verdict]
    gaps: dict[str, np.ndarray]
    margins: dict[str, float]

    @property
    def worst(self) -> Verdict:
        """The verdict on the whole: that of the worst record."""
        return worst(self.verdicts)

    @property
    def shown(self) -> bool:
        """Whether every gap is within its margin by every probe, and a record was known before, so that this says something.

        A record that was not (`NO_BASELINE`) does not stand in the way: it is treated as by models that never saw it, too.
        """
        near = all((np.abs(gaps) <= self.margins[name]).all() for name, gaps in self.gaps.items())
        return near and "CONSISTENT_WITH_RETRAIN" in self.verdicts

    @property
    def farthest(self) -> tuple[float, str]:
        """The gap that exceeds its margin by most, or comes nearest to it, and its probe."""
        probe = max(self.gaps, key=lambda name: float(np.abs(self.gaps[name]).max()) - self.margins[name])
        gaps = self.gaps[probe]
        return float(gaps[np.abs(gaps).argmax()]), probe


def worst(verdicts: list[Verdict]) -> Verdict:
    """The worst of some verdicts."""
    return min(verdicts, key=WORST_FIRST.index)


def judge(probes: Mapping[str, Probe], tolerance: float, blind: float = np.inf) -> Verdicts:
    """Judge every record by every probe; the worst probe decides. Without two retrained models every record is UNTESTABLE.

    Args:
        probes: by name; at least one was put to the model as it was.
        tolerance: in standard deviations between seeds; what an honest model needs is told at `TOLERANCE`.
        blind: loss of a model that finds everything equally likely.

    Raises:
        ValueError: no probe has a baseline, shapes differ, or the tolerance is not positive.
    """
    if not any(probe.before is not None for probe in probes.values()):
        raise ValueError("no probe was put to the model as it was: whether it knew the records cannot be told")
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected a number above 0 (standard deviations between seeds), got {tolerance}")
    count = len(next(iter(probes.values())).after)
    if not all(len(probe.retrained) for probe in probes.values()):
        return Verdicts(["UNTESTABLE"] * count, {}, {})
    gaps: dict[str, np.ndarray] = {}
    memories: dict[str, np.ndarray] = {}
    allowed: dict[str, float] = {}
    known = np.zeros(count, dtype=bool)
    for name, probe in probes.items():
        if probe.after.shape != (count,) or probe.retrained.shape[1:] != (count,):
            raise ValueError(
                f"probe {name}: expected {count} records, got {probe.after.shape} and {probe.retrained.shape} [S, n]"
            )
        after, retrained = _scaled(probe.after), _scaled(probe.retrained)
        sd, allowed[name] = _spread(retrained, tolerance)
        center = retrained.mean(0)
        gaps[name] = (after - center) / sd
        memories[name] = (after - np.minimum(center, _scaled(blind))) / sd
        if probe.before is not None:
            known |= (_scaled(probe.before) - center) / sd < -allowed[name]
    found: list[Verdict] = []
    for i in range(count):
        results = [_of_gap(gaps[name][i], memories[name][i], allowed[name]) for name in probes]
        if not known[i] and "OVER_UNLEARNED" not in results and "UNTESTABLE" not in results:
            found.append("NO_BASELINE")
        else:
            found.append(worst(results))
    return Verdicts(found, gaps, allowed)


def _scaled(losses: np.ndarray | float) -> np.ndarray:
    """Losses on the scale they are compared on; ones just below zero are rounding."""
    found: np.ndarray = np.sqrt(np.maximum(losses, 0))
    return found


def _spread(retrained: np.ndarray, tolerance: float) -> tuple[float, float]:
    """Standard deviation between seeds, and the gap in it that passes; the latter is negative where nothing can."""
    seeds, count = retrained.shape
    if seeds < 2:
        return 1.0, -np.inf
    freedom = count * (seeds - 1)
    sd = max(float(np.sqrt(retrained.var(0, ddof=1).mean())), LEAST_SD)
    return sd, tolerance - float(stats.t.ppf(CONFIDENCE, freedom)) / seeds**0.5


def _of_gap(gap: float, memory: float, allowed: float) -> Verdict:
    if allowed <= 0:
        return "UNTESTABLE"
    if abs(gap) <= allowed:
        return "CONSISTENT_WITH_RETRAIN"
    return "RESIDUAL" if memory < -allowed else "OVER_UNLEARNED"
