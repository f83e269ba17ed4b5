from __future__ import annotations

import polars as pl
import pytest

from curation.data.edits import plan_edits
from curation.errors import DataError
from tests.curation.data.builders import decisions

EXAMPLES = pl.DataFrame(
    {
        "example_id": ["a", "b", "c", "d", "v"],
        "label": ["x", "y", "x", "y", "x"],
        "split": ["train", "train", "train", "train", "validation"],
    }
)


def test_only_drop_and_relabel_change_anything() -> None:
    table = {"d": ("drop", None), "a": ("relabel", "y"), "b": ("review", "x"), "c": ("keep", "y")}
    edits = plan_edits(EXAMPLES, decisions(table, pl.String), ["x", "y"])
    assert edits.kept.to_list() == [True, True, True, False, True]
    assert edits.labels.to_list() == ["y", "y", "x", "y", "x"]


def test_no_decisions_change_nothing() -> None:
    edits = plan_edits(EXAMPLES, decisions({}, pl.String), ["x", "y"])
    assert edits.kept.all() and edits.labels.equals(EXAMPLES["label"])


def test_numbers_of_another_width_are_the_same_numbers() -> None:
    examples = EXAMPLES.with_columns(example_id=pl.Series([1, 2, 3, 4, 5]), label=pl.Series([0, 1, 0, 1, 0]))
    table = pl.DataFrame(
        {"example_id": [1], "decision": ["relabel"], "suggested_label": [1]},
        schema_overrides={"example_id": pl.Int32, "suggested_label": pl.UInt8},
    )
    assert plan_edits(examples, table, [0, 1]).labels.to_list() == [1, 1, 0, 1, 0]


def test_every_problem_is_listed() -> None:
    table = pl.DataFrame(
        {
            "example_id": ["a", "a", "nobody", "v", "b", "c", "d", None],
            "decision": ["keep", "drop", "keep", "drop", None, "relabel", "relabel", "keep"],
            "suggested_label": [None, None, None, None, None, None, "z", None],
        }
    )
    with pytest.raises(DataError) as error:
        plan_edits(EXAMPLES, table, ["x", "y"])
    foreign, repeated, unknown, unlabelled = error.value.problems
    assert "no training row" in foreign and "'nobody', 'v', None" in foreign
    assert "more than one" in repeated and "'a'" in repeated
    assert "keep, drop, relabel, review" in unknown and "'b'" in unknown
    assert "one of the classes" in unlabelled and "'c', 'd'" in unlabelled


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"a": ("drop", None), "c": ("drop", None)}, "'x'"),
        ({"b": ("relabel", "x"), "d": ("drop", None)}, "'y'"),
        (dict.fromkeys("abcd", ("drop", None)), "'x', 'y'"),
    ],
)
def test_a_class_is_never_edited_away(table: dict[object, tuple[str, object]], named: str) -> None:
    with pytest.raises(DataError, match=f"no training row would be left of class {named}"):
        plan_edits(EXAMPLES, decisions(table, pl.String), ["x", "y"])


def test_decisions_of_another_kind() -> None:
    with pytest.raises(DataError) as error:
        plan_edits(EXAMPLES, decisions({1: ("drop", 2)}, pl.Int64), ["x", "y"])
    assert len(error.value.problems) == 2 and "'example_id' holds Int64, expected String" in str(error.value)
    with pytest.raises(DataError, match="no column 'decision'"):
        plan_edits(EXAMPLES, pl.DataFrame({"example_id": ["a"], "suggested_label": ["x"]}), ["x", "y"])
