from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.benchmarks.matched import cheapest_stop, paired


def test_a_run_is_ended_where_the_rest_has_suffered_least_of_all_points_beyond_the_level():
    forgotten, retained = [0.0, 4.0, 2.0, 3.0, 6.0], [0.0, 9.0, 3.0, 2.0, 4.0]
    points = np.linspace(0, 4, 4001)
    losses = np.interp(points, range(5), forgotten), np.interp(points, range(5), retained)
    for level in (0.5, 1.0, 2.2, 2.7, 3.5, 5.0):
        after, share = cheapest_stop(forgotten, retained, level)
        enough = losses[0] >= level - 1e-9
        found = np.interp(after - 1 + share, range(5), retained)
        assert np.interp(after - 1 + share, range(5), forgotten) >= level - 1e-9
        assert found == pytest.approx(losses[1][enough].min(), abs=0.02)


def test_a_level_that_is_not_reached_has_no_stop_and_one_passed_at_the_start_is_refused():
    assert cheapest_stop([0.0, 1.0], [0.0, 0.0], 1.5) is None
    with pytest.raises(ValueError, match="begins below 0.4"):
        cheapest_stop([0.5, 1.0], [0.0, 0.0], 0.4)


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
