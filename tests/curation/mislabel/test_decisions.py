from __future__ import annotations

import logging

import numpy as np
import polars as pl
import pytest

from curation.mislabel import DecisionRule, decide, estimate_errors

CLASSES = ["cat", "dog", "eel"]
LABELS = np.array([0, 0, 1, 1, 2, 2])
SCORES = np.array([0.9, -0.5, 0.2, -0.7, 0.6, -0.9])
PROBABILITIES = np.array(
    [
        [0.02, 0.97, 0.01],
        [0.80, 0.15, 0.05],
        [0.45, 0.40, 0.15],
        [0.05, 0.90, 0.05],
        [0.001, 0.001, 0.998],
        [0.02, 0.08, 0.90],
    ]
)


def made(rule: DecisionRule, **changes: object) -> pl.DataFrame:
    arguments = {"labels": LABELS, "classes": CLASSES, "scores": SCORES, "probabilities": PROBABILITIES} | changes
    ids = [f"row-{i}" for i in range(len(np.asarray(arguments["labels"])))]
    return decide(ids, rule=rule, **arguments)  # type: ignore[arg-type]


def test_columns_and_a_budget() -> None:
    frame = made(DecisionRule(budget=2))
    assert frame.columns == [
        "example_id",
        "label",
        "suggested_label",
        "score",
        "threshold",
        "decision",
        "reason",
        "rule_version",
    ]
    assert frame["decision"].to_list() == ["drop", "keep", "keep", "keep", "drop", "keep"]
    assert frame["label"].to_list() == ["cat", "cat", "dog", "dog", "eel", "eel"]
    assert frame["suggested_label"].to_list() == ["dog", None, None, None, "cat", None]
    assert frame["threshold"].unique().to_list() == [0.6]
    assert frame["score"].to_list() == SCORES.tolist()


def test_reasons() -> None:
    proponents = np.array([[1, 1, 0], [2, 2, 2], [0, -1, -1], [2, 2, 2], [-1, -1, -1], [2, 2, 2]])
    reasons = made(DecisionRule(action="relabel", budget=2, review_band=0.5), proponent_labels=proponents)["reason"]
    assert reasons.to_list() == [
        "labelled cat, the model without this row says dog at 0.97; "
        "2 of the 3 strongest supporters of dog are labelled dog",
        "labelled cat, the model without this row agrees at 0.80",
        "labelled dog, the model without this row says cat at 0.45; "
        "1 of the 1 strongest supporters of cat are labelled cat; just below the cut",
        "labelled dog, the model without this row agrees at 0.90",
        "labelled eel, the model without this row says eel at over 0.99, then cat at under 0.01; "
        "no other row supports cat; too unsure to relabel without a look (needs 0.50)",
        "labelled eel, the model without this row agrees at 0.90",
    ]


@pytest.mark.parametrize(("budget", "why"), [(1, "not among the 1 highest scores"), (0, "no row is flagged")])
def test_why_a_row_the_model_disagrees_with_is_kept(budget: int, why: str) -> None:
    kept = made(DecisionRule(budget=budget))["reason"][2]
    assert kept == f"labelled dog, the model without this row says cat at 0.45, but {why}"


def test_as_many_as_labels_are_estimated_to_be_wrong() -> None:
    estimate = estimate_errors(PROBABILITIES, LABELS)
    assert 0 < estimate < 6
    assert (made(DecisionRule())["decision"] == "drop").sum() == estimate


@pytest.mark.parametrize(
    ("rule", "flagged"),
    [
        (DecisionRule(threshold=0.2), 3),
        (DecisionRule(threshold=5.0), 0),
        (DecisionRule(budget=0), 0),
        (DecisionRule(budget=99), 6),
        (DecisionRule(budget=0.34), 2),
        (DecisionRule(action="review", budget=2), 2),
    ],
)
def test_how_many(rule: DecisionRule, flagged: int) -> None:
    frame = made(rule)
    assert (frame["decision"] == rule.action).sum() == flagged
    assert (frame["decision"] == "keep").sum() == 6 - flagged
    assert (frame["threshold"].null_count() == 6) == (flagged == 0)


def test_unsure_suggestions_go_to_review() -> None:
    assert made(DecisionRule(action="relabel", budget=3))["decision"].to_list()[::2] == ["relabel", "review", "review"]
    sure = DecisionRule(action="drop", budget=3, min_confidence=0.4)
    assert made(sure)["decision"].to_list()[::2] == ["drop", "drop", "review"]


def test_a_row_that_is_reviewed_anyway_is_not_too_unsure_to_review() -> None:
    reason = made(DecisionRule(action="review", budget=3, min_confidence=0.5))["reason"][2]
    assert reason.endswith("says cat at 0.45; the suggestion is unsure (below 0.50)")


def test_ties_are_broken_by_the_probability_of_the_label_then_by_position() -> None:
    scores = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.4])
    decisions = made(DecisionRule(budget=2), scores=scores)["decision"].to_list()
    assert decisions == ["drop", "keep", "drop", "keep", "keep", "keep"]


def test_a_constant_score_flags_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        frame = made(DecisionRule(budget=3), scores=np.zeros(6))
    assert frame["decision"].unique().to_list() == ["keep"]
    assert "kernel_loo" in caplog.text


def test_integer_labels_keep_their_type() -> None:
    frame = made(DecisionRule(budget=1), classes=[3, 5, 8])
    assert frame.schema["label"] == frame.schema["suggested_label"] == pl.Int64
    assert frame["suggested_label"][0] == 5
    assert frame["reason"][0].startswith("labelled 3, the model without this row says 5 at 0.97")


def test_rule_version_names_every_setting() -> None:
    rules = [DecisionRule(), DecisionRule(budget=3), DecisionRule(action="relabel"), DecisionRule(signal="loss")]
    assert len({rule.version for rule in rules}) == 4
    assert DecisionRule().version == DecisionRule().version
    assert made(rules[1])["rule_version"].unique().to_list() == [rules[1].version]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "burn"}, "drop, relabel, review"),
        ({"budget": 3, "threshold": 0.1}, "not both"),
        ({"budget": 1.5}, "budget"),
        ({"budget": -1}, "budget"),
        ({"budget": True}, "budget"),
        ({"threshold": float("nan")}, "threshold"),
        ({"min_confidence": 1.2}, "min_confidence"),
        ({"review_band": -0.1, "min_confidence": 2}, "min_confidence.*review_band"),
    ],
)
def test_bad_rules(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionRule(**options)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"scores: expected shape \[6\]"):
        made(DecisionRule(), scores=np.zeros(5))
    with pytest.raises(ValueError, match="scores: expected finite"):
        made(DecisionRule(), scores=np.full(6, np.nan))
    with pytest.raises(ValueError, match="probabilities"):
        made(DecisionRule(), probabilities=np.zeros((6, 2)))
    with pytest.raises(ValueError, match="example_ids"):
        decide(["a"], LABELS, CLASSES, SCORES, PROBABILITIES, DecisionRule())
    with pytest.raises(ValueError, match="proponent_labels"):
        made(DecisionRule(), proponent_labels=np.zeros((2, 2)))
