from __future__ import annotations

from flows.summary import _lines


def lines(low: float, high: float, dropped: int = 3) -> dict[str, str]:
    """The closing lines of a run whose difference in accuracy has this interval."""
    summary = {
        "decisions": {"keep": 97, "drop": dropped, "relabel": 0, "review": 3 - dropped},
        "n_examples": 100,
        "n_flagged": 3,
        "n_planted": None,
        **{f"accuracy_{when}": 0.8 for when in ("before", "after")},
        **{f"accuracy_{when}_interval": [0.7, 0.9] for when in ("before", "after")},
        "accuracy_difference": (low + high) / 2,
        "accuracy_difference_interval": [low, high],
        "files": dict.fromkeys(("report", "decisions", "cleaned"), "file"),
        "mlflow_command": "mlflow ui",
    }
    return dict(_lines(summary))


def test_the_closing_table_says_what_the_difference_means() -> None:
    assert lines(0.01, 0.03)["Difference"] == "+2.0 points (95 %: +1.0 to +3.0)"
    assert lines(-0.01, 0.03)["Difference"].endswith(": may be chance")
    assert "lower by more than chance explains. Look at the flagged rows" in lines(-0.2, -0.02)["Difference"]


def test_rows_that_wait_for_review_have_changed_no_model() -> None:
    said = lines(0.0, 0.0, dropped=0)
    assert said["Accuracy after"] == "the same: no row was changed" and "Difference" not in said
