"""What select refuses before anything is computed: by its configuration, or when the data are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from curation.errors import DataError, ModelError
from flows.select_schema import ScoresSection, SelectConfig
from flows.stages import excluding, prepare
from flows.stages.strategies import check_model
from tests.flows.stages.selections import DIGITS, arguments, ignore, texts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"target": {"examples": 5000}},
            "target.examples: 5000 of 1618 target rows in the validation split are to choose",
        ),
        ({"target": {"where": {"column": "sauce", "values": ["x"]}}}, "target.where: there is no column 'sauce'"),
        ({"target": {"where": {"column": "source", "values": ["x"]}}}, "no row of the validation split has 'x'"),
        ({"target": {"data": {"class_path": "People"}}}, "target.data holds questions, the pool image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_selected_is_refused_by_load(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        prepare.load(arguments(tmp_path, DIGITS | change), tmp_path, ignore)


def test_all_that_is_wrong_with_a_selection_is_told_by_load_at_once(tmp_path: Path) -> None:
    wrong = {
        "budget": {"rows": 5000},
        "controls": ["bm25"],
        "strategy": {"name": "quotas", "options": {"column": "language"}},
        "target": {"group_by": "nothing"},
    }
    with pytest.raises(DataError) as caught:
        prepare.load(arguments(tmp_path, DIGITS | wrong), tmp_path, ignore)
    for part, said in zip(
        (
            "budget.rows: 5,000 rows are to be chosen, but the pool has 179",
            "strategy: the pool: there is no column 'language'",
            "controls: bm25 compares texts, the pool holds image",
            "target.group_by: there is no column 'nothing'",
        ),
        caught.value.problems,
        strict=True,
    ):
        assert said.startswith(part)


def test_strategies_and_their_options_are_checked_by_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="strategy.options: strategy top_k: unknown options k"):
        prepare.load(arguments(tmp_path, DIGITS | {"strategy": {"options": {"k": 3}}}), tmp_path, ignore)


def test_every_problem_between_two_fields_is_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        SelectConfig.model_validate(
            {
                "data": {"class_path": "Digits"},
                "budget": {"rows": 3, "share": 0.1},
                "target": {"split": "train", "data": {"class_path": "Digits"}},
                "controls": ["random", "random"],
                "compare": {"seeds": 0},
                "tracking": {"register_as": "x"},
                "train": {"max_epochs": 2},
                "index": {"projection": "kfac"},
                "scores": {"adam": True, "checkpoints": 3},
            }
        )
    said = str(caught.value)
    for part in (
        "got rows and share",
        "brings target rows of its own",
        "one is named twice",
        "nothing is fine-tuned",
        "3 states are to be kept, at most one an epoch, but train.max_epochs is 2",
        "scores.adam: takes the place of what an index with projection kfac has done",
    ):
        assert part in said


def test_states_of_a_warm_up_are_evenly_spaced_and_the_last_is_its_end() -> None:
    assert [ScoresSection(checkpoints=x).kept_epochs(5) for x in (1, 2, 5)] == [[], [3, 5], [1, 2, 3, 4, 5]]
    assert ScoresSection(adam=True).kept_epochs(5) == [5]
    given = {"data": {"class_path": "Digits"}, "budget": {"rows": 3}, "model": {"checkpoint": "x.ckpt"}}
    with pytest.raises(ValueError, match="2 states of a warm-up are to score, but model.checkpoint loads one"):
        SelectConfig.model_validate(given | {"scores": {"checkpoints": 2}})


def test_a_tiny_pool_is_refused_by_load(tmp_path: Path) -> None:
    few = texts(tmp_path, "few.csv", [(f"r{row}", f"text {row}", row % 2) for row in range(9)])
    with pytest.raises(DataError, match=r"the pool has 7 rows .*; expected 10 or more to choose from"):
        prepare.load(arguments(tmp_path, {"data": few, "budget": {"rows": 2}}), tmp_path, ignore)


def test_a_pool_of_duplicates_is_refused_with_numbers(tmp_path: Path) -> None:
    rows = [(f"r{row}", f"the same words again, {row % 3}", row % 2) for row in range(30)]
    own = texts(tmp_path, "target.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", row % 2) for row in range(6)])
    config = {
        "data": texts(tmp_path, "pool.csv", rows),
        "target": {"data": own, "examples": 3},
        "budget": {"rows": 9},
        "controls": [],
    }
    given = arguments(tmp_path, config)
    prepare.load(given, tmp_path, ignore)
    with pytest.raises(
        DataError, match=r"the budget of 9 rows is larger than the pool.*25 as duplicates|duplicates of one"
    ):
        excluding.run(given | {"rows": str(tmp_path / "rows.parquet")}, tmp_path, ignore)


def test_what_goes_by_embeddings_is_refused_by_load_where_a_model_has_none(tmp_path: Path) -> None:
    given, batch = arguments(tmp_path, DIGITS | {"controls": ["repsim"]}), (torch.zeros(2, 1, 8, 8), torch.zeros(2))
    with pytest.raises(ModelError, match="Flatten: expected an nn.Linear"):
        check_model(given, torch.nn.Flatten(), batch)
    check_model(arguments(tmp_path, DIGITS | {"controls": ["random"]}), torch.nn.Flatten(), batch)
