"""Numbers as the page prints them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from curation.report import wording
from curation.report.model import Figure
from tests.curation.report.example import image_report


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (-12.345, "\u221212.3"),
        (1234.4, "1234"),
        (250000, "250,000"),
        (1.5e-5, "1.5\u00d710\u207b\u2075"),
        (2.25e20, "2.2\u00d710\u00b2\u2070"),
        (float("nan"), "\u2013"),
        (None, "\u2013"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert wording.number(value) == text


def test_a_column_has_the_same_decimals_and_no_negative_zero() -> None:
    assert wording.aligned([0.4, -0.08, None, 0.0001]) == ["0.400", "\u22120.080", "\u2013", "0.000"]
    assert wording.aligned([12.0, -0.01], sign=True) == ["+12.0", "0.0"]
    assert wording.aligned([2e-7, 1e-7], sign=True) == ["+2.0\u00d710\u207b\u2077", "+1.0\u00d710\u207b\u2077"]
    assert wording.aligned([0.00366, 0.0029], sign=True, digits=2) == ["+0.0037", "+0.0029"]
    assert wording.aligned([]) == []
    assert wording.points(-0.0001) == "0.0"


def test_ticks_are_labelled_with_the_decimals_of_their_distance() -> None:
    assert wording.tick_labels([0.0, 0.5, 1.0], "number") == ["0.0", "0.5", "1.0"]
    assert wording.tick_labels([10, 20, 30], "number") == ["10", "20", "30"]
    assert wording.tick_labels([0.6, 0.8], "fraction") == ["60%", "80%"]
    assert wording.tick_labels([0.975, 0.98], "fraction") == ["97.5%", "98.0%"]
    assert wording.tick_labels([], "number") == []


def test_an_interval_needs_all_three_numbers() -> None:
    assert wording.figure_interval(Figure("f", 0.5, 0.25, 0.75, "fraction")) == "25.0% to 75.0%"
    assert wording.figure_interval(Figure("f", None, 0.25, 0.75, "fraction")) == ""
    assert wording.figure_interval(Figure("f", 0.5, float("nan"), 0.75, "fraction")) == ""


def test_the_lead_does_not_count_the_same_rows_twice() -> None:
    report = image_report()
    flagged = report.n_flagged
    every = replace(report, decisions={"keep": report.n_examples - flagged, "drop": flagged})
    assert wording.lead(every)[1] == "All of them were dropped."
    some = replace(report, decisions={"keep": report.n_examples - flagged, "drop": flagged - 2, "review": 2})
    assert wording.lead(some)[1] == f"Of these, {flagged - 2} were dropped and 2 left for a person to review."


def test_clipping_says_that_something_is_missing() -> None:
    assert wording.clipped("a  b\nc", 10) == "a b c"
    assert wording.clipped("x" * 30, 10) == "x" * 9 + "\u2026"
