"""Figures over seeds against a textbook table."""

from __future__ import annotations

import math

import pytest

from curation.selection_report.comparison import advantages, over_seeds


def test_the_interval_is_students() -> None:
    found = over_seeds([0.5, 0.6, 0.7, 0.8, 0.9])
    half = 2.776445 * math.sqrt(0.025) / math.sqrt(5)  # t of 97.5 %, 4 degrees of freedom; variance 0.1 / 4
    assert found.mean == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx((0.7 - half, 0.7 + half), rel=1e-6)
    assert over_seeds([0.0, 1.0], within=(0.0, 1.0)).to_json([4, 7]) == {
        "mean": 0.5,
        "low": 0.0,
        "high": 1.0,
        "by_seed": {"4": 0.0, "7": 1.0},
    }
    assert list(found.to_json(range(5))["by_seed"].values()) == [0.5, 0.6, 0.7, 0.8, 0.9]


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert over_seeds([0.5]).to_json([1]) == {"mean": 0.5, "low": None, "high": None, "by_seed": {"1": 0.5}}
    with pytest.raises(ValueError, match="got none"):
        over_seeds([])


def test_advantages_are_paired_by_seed() -> None:
    rates = {"mine": [0.9, 0.5], "other": [0.8, 0.4]}
    found = advantages(rates, "mine")
    assert list(found) == ["other"] and found["other"].mean == pytest.approx(0.1)
    low, high = found["other"].low, found["other"].high
    assert (
        low is not None and high is not None and high - low < 1e-9
    )  # each seed says the same, however far apart they are
