"""The stages of select on small pools, in this process: what each makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curation.errors import DataError, ModelError
from flows.stages import aggregating, choosing, excluding, growing, indexing, prepare, training
from flows.stages.common import open_data
from lorif_core import FactorStore
from tests.flows.stages.selections import DIGITS, arguments, ignore

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


def test_rows_stand_for_others_by_their_gradients_or_by_their_embeddings(
    people: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    _, given, values = people
    found = {}
    for vectors in ("embeddings", "factors"):
        strategy = given["strategy"] | {"name": "facility_location", "vectors": vectors}
        found[vectors] = choosing.run(given | {"strategy": strategy}, tmp_path, ignore).values["digests"]
        assert {**found[vectors], "selected": 0} == {**values["digests"], "selected": 0}, "controls choose as ever"
        assert pl.read_parquet(tmp_path / "selected.parquet")["reason"].str.contains("how well the pool").all()
    assert found["embeddings"]["selected"] != found["factors"]["selected"]


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
