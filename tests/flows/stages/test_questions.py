"""The stages load, train, index and append on questions: a language model, its own loss, its own figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation.errors import DataError
from flows.schema import IndexSection, TrainSection
from flows.stages import indexing, prepare, scoring, training
from lorif_core import FactorStore


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    people = {"n_people": 2, "n_holdout": 1, "vocabulary": 300}
    return {
        "data": {"class_path": "People", "init_args": people},
        "root": str(folder),
        "model": {"class_path": None, "init_args": {"width": 16, "heads": 2}, "checkpoint": None},
        "train": TrainSection(max_epochs=1).model_dump(),
        "index": IndexSection(curvature_rank=8).model_dump(),
        "index_asked": [],
        "decisions": None,
        **more,
    }


def ignore(what: str, done: int, total: int | None) -> None:
    """No progress is shown."""


def test_questions_are_loaded_trained_on_and_indexed(tmp_path: Path) -> None:
    found = prepare.load(arguments(tmp_path), tmp_path, ignore).values
    assert found["kind"] == "questions" and found["classes"] == [] and found["n_train"] == 14
    assert found["model"]["class_path"] == "curation.models.TinyGPT"
    trained = training.run(arguments(tmp_path), tmp_path, ignore)
    assert 0 <= trained.values["metrics"]["val_exact"] <= 1
    checkpoint = tmp_path / trained.files["checkpoint"]
    made = indexing.run(arguments(tmp_path, checkpoint=checkpoint), tmp_path, ignore)
    assert made.values["rows"] == 14 and made.values["coverage"] == 1.0
    assert FactorStore.open(tmp_path / "index").ids()[0] == "person-00/birth_city"


def test_what_is_about_labels_refuses_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="People holds questions; expected rows with labels"):
        scoring.run(arguments(tmp_path, signals={}), tmp_path, ignore)
