from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.benchmarks.matched import MOST_RUNS, NEAR, bracket, paired


@pytest.mark.parametrize("start", [0.1, 3.0, 11.0, 900.0])
def test_a_bracket_lies_around_the_weight_that_forgets_as_much_as_the_level(start: float) -> None:
    tried: dict[float, float] = {}

    def forgotten(weight: float) -> float:
        tried[weight] = 8 / (1 + (weight / 10) ** 2)
        return tried[weight]

    found = bracket(forgotten, 4.0, start)  # met at 10
    assert found is not None and {found.lower, found.higher} <= set(tried)
    assert found.lower <= 10 <= found.higher <= found.lower * 2**NEAR * (1 + 1e-9)
    between = (1 - found.share) * tried[found.lower] + found.share * tried[found.higher]
    assert between == pytest.approx(4.0) and len(tried) <= MOST_RUNS


def test_a_level_that_no_weight_reaches_has_no_bracket():
    assert bracket(lambda weight: 1.0, 1.5, 4.0) is None


def test_paired_intervals_are_those_of_students_t():
    ours, theirs = np.random.default_rng(0).normal(size=(2, 8))
    found = paired(ours, theirs)
    wanted = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((wanted.low, wanted.high))
    shifted = paired(theirs + 1 + 0.1 * (ours - ours.mean()), theirs)
    assert shifted.above and not shifted.below and not paired(ours, ours).above


def test_unpaired_or_single_figures_are_refused():
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="2 seeds or more"):
        paired([1], [1])
