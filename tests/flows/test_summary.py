from __future__ import annotations

from flows.summary import _lines


def difference(low: float, high: float) -> str:
    """The closing line on the difference in accuracy whose interval this is."""
    summary = {
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
    return dict(_lines(summary))["Difference"]


def test_the_closing_table_says_what_the_difference_means() -> None:
    assert difference(0.01, 0.03) == "+2.0 points (95 %: +1.0 to +3.0)"
    assert difference(-0.01, 0.03).endswith(": may be chance")
    assert "lower by more than chance explains. Look at the flagged rows" in difference(-0.2, -0.02)
