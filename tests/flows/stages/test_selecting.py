"""The stages of select on small pools, in this process: what each makes, and what is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curation.errors import DataError, ModelError
from flows.select_schema import ScoresSection, SelectConfig
from flows.stages import aggregating, choosing, excluding, growing, indexing, prepare, training
from flows.stages.common import open_data
from flows.stages.targeting import check_model, contents, open_targets
from lorif_core import FactorStore

PEOPLE: dict[str, Any] = {
    "data": {"class_path": "People", "init_args": {"n_people": 4, "n_holdout": 1, "vocabulary": 300}},
    "model": {"init_args": {"width": 16, "heads": 2, "depth": 1}},
    "target": {
        "split": "train",
        "where": {"column": "example_id", "values": ["person-00/award", "person-00/book", "person-01/award"]},
        "examples": 2,
    },
    "budget": {"tokens": 300},
    "train": {"max_epochs": 1},
    "index": {"curvature_rank": 8},
    "controls": ["random", "bm25", "repsim", "loss"],
    "scores": {"normalise": True},
    "report": {"rows": 2},
    "duplicates": {"near": None},
}


def arguments(folder: Path, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    made = SelectConfig.model_validate({"root": str(folder), **config}).model_dump(mode="json")
    return made | {"data_digest": None, "decisions": None, "index_asked": [], **more}


def ignore(what: str, done: int, total: int | None) -> None:
    """No progress is shown."""


def scored(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of choose, after the stages before it."""
    given = arguments(folder, config)
    prepare.load(given, folder, ignore)
    excluding.run(given | {"rows": str(folder / "rows.parquet")}, folder, ignore)
    given |= {"chosen": {"rows": str(folder / "slice.parquet"), "steps": None, "start": None, "states": []}}
    given |= {"checkpoint": str(folder / training.run(given, folder, ignore).files["checkpoint"])}
    indexing.run(given, folder, ignore)
    scorer = {
        "checkpoint": given["checkpoint"],
        "index_path": str(folder / "index"),
        "state": None,
        "learning_rate": 1.0,
    }
    given |= {"checkpoints": [scorer], "excluded": str(folder / "excluded.parquet")}
    aggregating.run(given, folder, ignore)
    return given | {
        "scores_file": str((folder / "scores.parquet").rename(folder / "aggregated.parquet")),
        "best": str(folder / "best.parquet"),
        "seeds": [1, 2],
    }


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder, arguments and values of a choice among questions."""
    folder = tmp_path_factory.mktemp("people")
    given = scored(folder, PEOPLE)
    return folder, given, choosing.run(given, folder, ignore).values


def test_questions_are_selected_by_a_language_model(people: tuple[Path, dict[str, Any], dict[str, Any]]) -> None:
    folder, given, values = people
    selected, excluded, scores, shown = (
        pl.read_parquet(folder / f"{name}.parquet") for name in ("selected", "excluded", "scores", "shown")
    )
    asked = PEOPLE["target"]["where"]["values"]
    assert set(asked) <= set(excluded.filter(kind="target rows")["example_id"])
    assert not set(asked) & set(selected["example_id"])
    assert 200 < values["tokens"] <= 300 and values["rows"] == len(selected)
    assert set(values["digests"]) == {"selected", "random-1", "random-2", "bm25", "repsim", "loss"}
    losses = FactorStore.open(folder / "index").losses().numpy()
    data = open_data(given)
    tokens = [int((row["labels"][1:] != -100).sum()) for row in data.train_dataset]
    assert np.allclose(scores["loss"], losses / tokens)
    means = shown.group_by("position").agg(pl.col("score").mean()).sort("position")
    assert np.allclose(means["score"], scores["score"].gather(means["position"]), rtol=1e-3), (
        "a score is of target rows"
    )


def test_rows_that_hurt_are_left_out_of_the_selection_only(
    people: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    folder, given, values = people
    found = choosing.run(given | {"exclude_harmful": True}, tmp_path, ignore).values
    assert {**found["digests"], "selected": 0} == {**values["digests"], "selected": 0}, "controls know no influence"
    hurting, selected = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("harmful", "selected"))
    assert len(hurting) and not set(hurting["example_id"]) & set(selected["example_id"])
    assert pl.read_parquet(tmp_path / "shown.parquet").equals(pl.read_parquet(folder / "shown.parquet"))
    left = len(pl.read_parquet(folder / "scores.parquet")) - len(pl.read_parquet(folder / "excluded.parquet"))
    with pytest.raises(DataError, match=r"larger than the pool.*\(exclude_harmful leaves out \d+ rows\)"):
        choosing.run(given | {"exclude_harmful": True, "budget": {"rows": left}}, tmp_path, ignore)


def test_a_training_on_the_selection_goes_on_from_the_model_that_is_given(
    people: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    folder, given, _ = people
    before = torch.load(given["checkpoint"], weights_only=True)["state_dict"]
    chosen = {"rows": str(folder / "selected.parquet"), "steps": 2, "start": given["checkpoint"], "states": []}
    tuned = training.run(given | {"chosen": chosen}, tmp_path, ignore)
    assert tuned.values["steps"] == 2 and tuned.values["metrics"]["val_n"] == 1
    after = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.05, "two small steps away"


DIGITS: dict[str, Any] = {
    "data": {"class_path": "MixedDigits", "init_args": {"validation_fraction": 0.9}},
    "model": {"init_args": {"arch": "mlp"}},
    "target": {"examples": 20},
    "budget": {"rows": 20},
}


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


def test_scores_that_the_model_cannot_give_are_refused_by_load(
    people: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    folder, given, _ = people
    model = given["model"] | {"checkpoint": str(folder / "model.ckpt")}
    wrong = {"scores": given["scores"] | {"adam": True, "layer_weights": {"tail": 2.0}}, "model": model}
    with pytest.raises(ModelError) as caught:
        prepare.load(given | wrong, tmp_path, ignore)
    assert "'tail' fits no layer of the index" in str(caught.value)
    assert "model.ckpt: expected a checkpoint with the state of one Adam optimizer, got 0" in str(caught.value)


def texts(folder: Path, name: str, rows: list[tuple[str, str, int]], **more: Any) -> dict[str, Any]:
    """A table as a data section."""
    frame = pl.DataFrame(rows, schema=["id", "text", "label"], orient="row")
    frame.with_columns(split=pl.Series(["train"] * (len(rows) - 2) + ["validation"] * 2)).write_csv(folder / name)
    return {
        "class_path": "TableData",
        "init_args": {"path": name, "label": "label", "id": "id", "text": "text", "split": "split", **more},
    }


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


def test_targets_of_another_source_are_coded_as_the_pool_and_must_be_made_alike(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", "abc"[row % 3]) for row in range(30)])
    two = texts(tmp_path, "two.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", "cb"[row % 2]) for row in range(6)])
    config = {"data": pool, "target": {"data": two, "examples": 3}, "budget": {"rows": 9}, "controls": []}
    given = arguments(tmp_path, config)
    targets = open_targets(given, open_data(given))
    assert len(targets) == 6 and [code for _, code in (targets.dataset[row] for row in range(6))] == [2, 1] * 3
    assert sorted([*targets.choosing, *targets.measuring]) == list(range(6)) and len(targets.choosing) == 3
    buckets = {**two, "init_args": two["init_args"] | {"buckets": 999}}
    given = arguments(tmp_path, config | {"target": {"data": buckets, "examples": 3}})
    with pytest.raises(DataError, match=r"made otherwise than the pool's \(vocab_buckets 999 there, 16384 here\)"):
        open_targets(given, open_data(given))
    unknown = texts(
        tmp_path, "unknown.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", "de"[row % 2]) for row in range(6)]
    )
    given = arguments(tmp_path, config | {"target": {"data": unknown, "examples": 3}})
    with pytest.raises(DataError, match="no training row of the pool has the label 'd', 'e'"):
        open_targets(given, open_data(given))


def test_copies_of_target_rows_that_choose_do_not_measure(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", row % 2) for row in range(30)])
    own = texts(tmp_path, "own.csv", [(f"t{row}", f"{chr(97 + row // 3) * 9} else", row // 3 % 2) for row in range(12)])
    config = {"data": pool, "target": {"data": own, "examples": 3}, "budget": {"rows": 9}, "controls": []}
    given = arguments(tmp_path, config)
    targets = open_targets(given, open_data(given))
    said = [targets.show(row).text for row in range(12)]
    assert not {said[row] for row in targets.choosing} & {said[row] for row in targets.measuring}
    assert len(targets.measuring) == 12 - 3 * len({said[row] for row in targets.choosing})
    given = arguments(tmp_path, config | {"target": {"data": own, "examples": 11}})
    with pytest.raises(DataError, match="all 1 target rows in target.data that are to measure hold exactly or nearly"):
        open_targets(given, open_data(given))


def test_near_copies_of_target_rows_that_choose_do_not_measure_either(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", row % 2) for row in range(30)])
    said = [f"the {word} of the {word} is here with a {word} and another {word}" for word in ("sea", "fire", "stone")]
    rows = [(f"t{row}", said[row // 4] + "!" * (row % 4) + " so" * (row % 2), row // 4 % 2) for row in range(12)]
    own = texts(tmp_path, "own.csv", rows)
    config = {"data": pool, "target": {"data": own, "examples": 2}, "budget": {"rows": 9}, "controls": []}
    found = []
    for near in (None, 0.7):
        given = arguments(tmp_path, config | {"decontaminate": {"near": near}})
        found.append(open_targets(given, open_data(given)))
    equal, alike = found
    chose = {row // 4 for row in alike.choosing.tolist()}
    assert {row // 4 for row in equal.measuring.tolist()} == {0, 1, 2}
    assert {row // 4 for row in alike.measuring.tolist()} == {0, 1, 2} - chose and equal.digest != alike.digest


def test_rows_of_another_split_of_the_targets_data_are_told(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", row % 2) for row in range(30)])
    own = texts(tmp_path, "own.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", row % 2) for row in range(12)])
    frame = pl.read_csv(tmp_path / "own.csv")
    frame.with_columns(split=pl.Series(["train"] * 7 + ["test"] * 3 + ["validation"] * 2)).write_csv(
        tmp_path / "own.csv"
    )
    config = {"data": pool, "target": {"data": own, "examples": 3}, "budget": {"rows": 9}, "controls": []}
    found = prepare.load(arguments(tmp_path, config), tmp_path, ignore).values["select"]
    assert (found["rows"], found["left_out"]) == (9, 3)


def test_a_row_whose_tokens_are_made_otherwise_is_another_row_of_a_growing_pool(tmp_path: Path) -> None:
    rows = [(f"r{row}", f"a number of words of row {row}", row % 2) for row in range(12)]
    short, long = (
        open_data(
            arguments(tmp_path, {"data": texts(tmp_path, "pool.csv", rows, max_tokens=most), "budget": {"rows": 9}})
        )
        for most in (2, 8)
    )
    before, after = contents(short), contents(long)
    assert before["inputs"].equals(after["inputs"])
    assert before.join(after, on=["example_id", "content"]).is_empty()
    padded = [(f"r{row}", text if row else f"{text} and more", label) for row, (_, text, label) in enumerate(rows)]
    wider = contents(
        open_data(arguments(tmp_path, {"data": texts(tmp_path, "wide.csv", padded), "budget": {"rows": 9}}))
    )
    plain = contents(open_data(arguments(tmp_path, {"data": texts(tmp_path, "pool.csv", rows), "budget": {"rows": 9}})))
    assert wider["content"][1:].equals(plain["content"][1:]), "padding makes no other row"


def test_what_goes_by_embeddings_is_refused_by_load_where_a_model_has_none(tmp_path: Path) -> None:
    given, batch = arguments(tmp_path, DIGITS | {"controls": ["repsim"]}), (torch.zeros(2, 1, 8, 8), torch.zeros(2))
    with pytest.raises(ModelError, match="Flatten: expected an nn.Linear"):
        check_model(given, torch.nn.Flatten(), batch)
    check_model(arguments(tmp_path, DIGITS | {"controls": ["random"]}), torch.nn.Flatten(), batch)


def test_an_index_that_grew_is_linked_and_left_as_it_was(tmp_path: Path) -> None:
    small, large = (
        arguments(tmp_path, DIGITS | {"data": {"class_path": "Digits", "init_args": {"validation_fraction": share}}})
        for share in (0.95, 0.9)
    )
    for name in ("base", "grown"):
        (tmp_path / name).mkdir()
    small["train"]["max_epochs"] = 1
    checkpoint = tmp_path / training.run(small, tmp_path, ignore).files["checkpoint"]
    indexing.run(small | {"checkpoint": str(checkpoint)}, tmp_path / "base", ignore)
    before = {path.name: path.read_bytes() for path in (tmp_path / "base" / "index").iterdir() if path.is_file()}
    base = tmp_path / "base" / "index"
    grown = growing.run(large | {"checkpoint": str(checkpoint), "base": str(base)}, tmp_path / "grown", ignore)
    data = open_data(large)
    assert grown.values["rows"] == len(data.train_dataset) and 0 < grown.values["added"] < grown.values["rows"]
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == before
    again = growing.run(large | {"checkpoint": str(checkpoint), "base": str(base)}, tmp_path / "grown", ignore)
    assert again.values["added"] == 0
