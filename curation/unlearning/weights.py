"""How hard each record is pushed out of the model: uniform, random, or less where that would hurt what must stay (GUARD).

Axes: n records to forget.

GUARD weighs a record by the alignment of its gradient with the mean gradient of the rows that stay (arXiv 2506.10946; its
literal equations were not available, so what follows is the reconstruction of papers' notes, section 1.2):

    a_i = <g_i, mean_r g_r>,    w_i = n exp(-a_i / tau) / sum_j exp(-a_j / tau),    tau = temperature * std(a)

A step of size eta against record i changes the mean loss of what stays by eta w_i a_i, so that records which share their
gradient with it are pushed least. The mean weight is one; an infinite temperature gives ones exactly.

At the end of a training the two mean gradients cancel, and a_i is minus the record's alignment with the other records
(correlation -0.98 to -1.00 in four models): weights of the model as it was push hardest what the records have in common. Ten
steps later, and at the end, the sign has turned (0.7 to 1.0), and renewed weights spare it. Where a run has come to rest
between the two, alpha v = mean_i g_i with equal weights already is the condition for what stays to suffer least at that mean
loss of the records, so that other weights can only gain on the way there.

What that is worth, measured (`tests/benchmarks/guard_weights.py --first-seed 8`, small models, 8 seeds, temperature 2, renewed
every 5 steps): loss of what stays minus that under uniform weights, with its 95 % interval, at equal mean losses of the records.
Guard by dot products is worse than uniform weights, beyond the interval, in four of six settings; guard-dynamic by cosines, the
default, is nowhere worse. Over 24 further seeds (`--first-seed 16`, stopped) it is better for the difference: -0.016 +-0.008 on
people, -0.027 +-0.021 on TOFU; for npo +0.021 +-0.027 and +0.024 +-0.041. What helps more is to give the rows that stay as much
weight as the level allows (tuned).

    stopped at the level  uniform   guard, dot       guard-dynamic, cosine   random
    people, difference      0.156   +0.045 +-0.028   -0.010 +-0.018          +0.027 +-0.014
    TOFU, difference        0.241   +0.002 +-0.059   -0.018 +-0.048          +0.037 +-0.021
    people, npo             0.281   +0.049 +-0.046   +0.015 +-0.030          -0.001 +-0.044
    TOFU, npo               0.559   -0.077 +-0.175   +0.091 +-0.202          -0.032 +-0.030

    tuned to end there
    people, difference      0.072   +0.023 +-0.016   +0.001 +-0.004
    TOFU, difference        0.092   +0.015 +-0.013   -0.002 +-0.009         (5 seeds)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.errors import CurationError

LEAST_TEMPERATURE = 1.0
"""Below it a few records take nearly all the weight: at 0.5 two in a hundred are effectively pushed."""
LEAST_EFFECTIVE = 0.2
"""Of the records: the effective share below which weights are refused."""
OPPOSED = -0.5
"""A cosine of the mean forget and retain gradients below which the model stands still between the two."""


class WeightsError(CurationError):
    """The weights cannot be used as they were asked for."""


class UnevenWeightsError(WeightsError):
    """A few records would take nearly all the weight."""


@dataclass(frozen=True)
class Weights:
    """One weight a record.

    Attributes:
        values: float64 [n], mean one.
        alignment: a, float64 [n]; None where nothing was scored.
        opposition: cosine of the mean gradient of the records and of the rows that stay, in [-1, 1]; None likewise.
        warnings: what a person should know before relying on them.
    """

    values: np.ndarray
    alignment: np.ndarray | None = None
    opposition: float | None = None
    warnings: Sequence[str] = ()

    @property
    def effective_size(self) -> float:
        """(sum w)^2 / sum w^2: how many equal weights they are worth, between 1 and n."""
        return float(self.values.sum() ** 2 / np.square(self.values).sum())


def uniform_weights(count: int) -> Weights:
    """Ones: no record is spared."""
    return Weights(np.ones(count))


def guard_weights(alignment: np.ndarray, temperature: float, opposition: float | None = None) -> Weights:
    """The weights of GUARD.

    Args:
        alignment: a, float [n]; positive = removing the record raises the loss of what stays.
        temperature: tau in standard deviations of a, at least 1; infinite for ones.
        opposition: cosine of the two mean gradients, for the warning.

    Raises:
        WeightsError: a temperature below `LEAST_TEMPERATURE`, or alignments that are not finite.
        UnevenWeightsError: weights that leave an effective share of the records below `LEAST_EFFECTIVE`.
    """
    a = np.asarray(alignment, dtype=np.float64)
    if not temperature >= LEAST_TEMPERATURE:
        raise WeightsError(
            f"temperature: expected at least {LEAST_TEMPERATURE} (standard deviations of the alignment), got {temperature}: "
            "below, a few records take nearly all the weight"
        )
    if not np.isfinite(a).all():
        raise WeightsError(
            f"{np.sum(~np.isfinite(a))} of {len(a)} alignments are not finite: check the model's weights"
        )
    scale = temperature * a.std()
    values = np.ones(len(a)) if math.isinf(temperature) or scale == 0 else _softmax_mean_one(-a / scale)
    warnings = [] if opposition is None or opposition >= OPPOSED else [_stationary(opposition)]
    found = Weights(values, a, opposition, tuple(warnings))
    if found.effective_size < LEAST_EFFECTIVE * len(a):
        raise UnevenWeightsError(
            f"the weights are worth {found.effective_size:.1f} of {len(a)} records, expected at least "
            f"{LEAST_EFFECTIVE:.0%}: raise the temperature from {temperature:g}, or use uniform weights"
        )
    return found


def random_weights(count: int, temperature: float, seed: int) -> Weights:
    """As uneven as GUARD's of the same temperature, in an order of the seed's: the control that any benefit must beat."""
    drawn = np.random.default_rng(seed).standard_normal(count)
    return Weights(guard_weights(drawn, temperature).values)


def _softmax_mean_one(exponents: np.ndarray) -> np.ndarray:
    powers = np.exp(exponents - exponents.max())
    weights: np.ndarray = powers * (len(powers) / powers.sum())
    return weights


def _stationary(cosine: float) -> str:
    return (
        f"the gradients of what is to go and of what stays oppose each other (cosine {cosine:.2f}): at the end of a training "
        "they cancel, and alignments then say little about what removing a record costs; prefer guard-dynamic or uniform"
    )
