"""The charts draw the numbers they are given."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.report.charts import bin_edges, heat_levels, histogram, interval, legend, line_chart, shared_domain, ticks
from curation.report.model import Curve, Distribution, Figure, Series

numbers = st.floats(-1e6, 1e6)


def bars(svg: str, css: str) -> list[float]:
    """Heights of the bars of one class, pixels."""
    return [float(height) for height in re.findall(rf'<rect class="{css}"[^>]*height="([\d.]+)"', svg)]


@given(st.lists(numbers, min_size=1, max_size=30), st.none() | numbers)
@settings(max_examples=60, deadline=None)
def test_every_score_falls_into_a_bin_and_none_straddles_the_threshold(
    values: list[float], threshold: float | None
) -> None:
    scores = np.array(values)
    edges = bin_edges(scores, threshold)
    assert np.all(np.diff(edges) > 0)
    assert np.histogram(scores, edges)[0].sum() == len(values)
    if threshold is not None and len(edges) > 2:
        assert np.abs(edges - threshold).min() <= 1e-9 * max(1.0, abs(threshold), np.abs(scores).max())


@given(numbers, numbers)
@settings(max_examples=60, deadline=None)
def test_ticks_lie_inside_and_are_few(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    marks = ticks(low, high)
    slack = 1e-6 * max(1e-12, high - low)
    assert len(marks) <= 5 and all(low - slack <= mark <= high + slack for mark in marks)


def test_histogram_heights_are_proportional_to_rows() -> None:
    scores = np.array([0.0] * 6 + [0.1] * 3 + [1.0] * 4)
    flagged = scores > 0.5
    wrong = np.zeros(13, bool)
    wrong[[0, 9, 10]] = True
    svg = str(histogram(Distribution("s", scores, flagged, 0.5, wrong)))
    assert bars(svg, "kept") == pytest.approx([92, 46], abs=0.1)
    assert bars(svg, "flagged") == pytest.approx([92], abs=0.1)
    assert bars(svg, "wrong") == pytest.approx([92 / 6, 46], abs=0.1)
    assert "Kept: 9, 1 known wrong" in svg and "Flagged: 4, 2 known wrong" in svg and "threshold 0.500" in svg


@pytest.mark.parametrize("value", [0.0, -3.5, 1e300, 1e-320])
def test_a_constant_signal_is_one_bar(value: float) -> None:
    svg = str(histogram(Distribution("s", np.full(4, value), np.zeros(4, bool))))
    assert len(bars(svg, "kept")) == 1 and "nan" not in svg and "inf" not in svg


def test_scores_that_are_not_finite_are_left_out_and_counted() -> None:
    scores = np.array([0.0, 1.0, np.nan, np.inf])
    svg = str(histogram(Distribution("s", scores, np.array([False, True, True, False]))))
    assert "1 kept and 1 flagged rows" in svg and "2 rows without a finite score left out" in svg
    assert "No finite score" in histogram(Distribution("s", np.full(2, np.nan), np.zeros(2, bool)))


def test_a_missing_value_breaks_the_line() -> None:
    curve = Curve(
        "Loss", [Series("before", [1, 2, 3, 4], [4.0, 3.0, float("nan"), 1.0]), Series("after", [1, 4], [4.0, 0.5])]
    )
    svg = str(line_chart(curve))
    points = re.findall(r'<polyline class="([^"]+)" points="([^"]+)"', svg)
    assert [(css, len(path.split())) for css, path in points] == [
        ("line before", 2),
        ("line before", 2),
        ("line after", 2),
    ]
    assert points[2][1].startswith("0.00,") and points[2][1].split()[1].startswith("100.00,")
    assert [(name, last) for _, name, last in legend(curve)] == [("before", "1.00"), ("after", "0.500")]


def test_an_empty_or_constant_curve_is_drawn_without_a_division() -> None:
    assert "Nothing was recorded" in line_chart(Curve("Loss", [Series("before", [], [])]))
    assert "Nothing was recorded" in line_chart(Curve("Loss", []))
    assert "nan" not in line_chart(Curve("Loss", [Series("after", [1, 2], [0.5, 0.5])]))


def test_intervals_share_an_axis_that_stays_inside_what_is_possible() -> None:
    figures = [Figure("a", 0.9, 0.8, 1.0, "fraction"), Figure("b", 0.5, 0.4, 0.6, "fraction")]
    low, high = shared_domain(figures)
    assert 0 <= low < 0.4 and high == 1.0
    [start, end] = re.findall(r'class="whisker" x1="([\d.]+)%" x2="([\d.]+)%"', interval(figures[0], (0.0, 1.0)))[0]
    assert (float(start), float(end)) == (80.0, 100.0)
    low, high = shared_domain([Figure("d", 0.03, 0.01, 0.05, "difference")])
    assert low < 0 < high and 'class="zero"' in interval(Figure("d", 0.03, 0.01, 0.05, "difference"), (low, high))
    assert shared_domain([Figure("n", 3.0)]) is None and interval(Figure("n", 3.0), (0.0, 1.0)) == ""


def test_an_interval_is_drawn_only_beside_what_it_can_be_compared_with() -> None:
    count, share = Figure("rows", 110, unit="count"), Figure("share", 0.076, 0.064, 0.091, "fraction")
    assert shared_domain([count, share]) is None
    low, high = shared_domain([count, share, Figure("other", 0.5, 0.4, 0.6, "fraction")])
    assert 0 <= low < 0.064 and 0.6 < high < 1


def test_heat_grows_with_the_count() -> None:
    levels = heat_levels(np.array([[0, 1], [25, 100]]))
    assert levels.tolist() == [[0, 1], [3, 6]]
    assert heat_levels(np.zeros((2, 2), np.int64)).tolist() == [[0, 0], [0, 0]]
