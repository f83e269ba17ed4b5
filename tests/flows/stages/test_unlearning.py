"""The stages resolve, weigh and unlearn on a handful of people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curation.errors import DataError, ModelError
from curation.unlearning.duplicates import by_gradients, by_text
from curation.unlearning.ledger import Ledger
from curation.unlearning.verification.records import records_of
from flows.schema import DataSection
from flows.stages import indexing, prepare, resolving, training, unlearning, weighing
from flows.stages.common import open_data, trained_model
from flows.unlearn_schema import RetainSection, UnlearnConfig
from lorif_core import FactorStore

PERSON = [f"person-00/{fact}" for fact in ("birth_city", "profession")]


def arguments(folder: Path, request: dict[str, Any], **sections: Any) -> dict[str, Any]:
    people = {"n_people": 3, "n_holdout": 1, "vocabulary": 300}
    config = UnlearnConfig(
        data=DataSection(class_path="People", init_args=people),
        model={"init_args": {"width": 16, "heads": 2, "depth": 1}},  # type: ignore[arg-type]
        train={"max_epochs": 1},  # type: ignore[arg-type]
        index={"curvature_rank": 8, "projection": "identity", "storage": "dense", "bits": 32},  # type: ignore[arg-type]
        request=request,  # type: ignore[arg-type]
        root=folder,
        **sections,
    )
    made = config.model_dump(mode="json")
    return made | {
        "ids": config.request.ids or None,
        "index_path": None,
        "decisions": None,
        "index_asked": [],
        "ledger": None,
    }


def ignore(what: str, done: int, total: int | None) -> None:
    """No progress is shown."""


def test_ids_and_values_of_a_column_mean_the_same_rows(tmp_path: Path) -> None:
    by_ids = resolving.run(arguments(tmp_path, {"ids": PERSON}), tmp_path, ignore)
    assert by_ids.values["records"] == by_ids.values["requested"] == 2 and len(by_ids.values["digest"]) == 64
    records = pl.read_parquet(tmp_path / "records.parquet")
    assert sorted(records["example_id"]) == PERSON and set(records["why"]) == {"requested"}
    where = {"column": "example_id", "values": PERSON}
    assert resolving.run(arguments(tmp_path, {"where": where}), tmp_path, ignore).values == by_ids.values


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"ids": ["nobody/x", *PERSON]}, "no training row has the id: .*nobody/x"),
        ({"ids": ["person-03/award"]}, r"1 of them are rows of other splits"),
        ({"where": {"column": "town", "values": ["x"]}}, "town"),
        (
            {"where": {"column": "fact", "values": ["shoe size"]}},
            "no training row has 'shoe size' in the column 'fact'",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(request_: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        resolving.run(arguments(tmp_path, request_), tmp_path, ignore)


@pytest.mark.parametrize(
    ("retain", "said"),
    [
        ({"ids": ["nobody/x", *PERSON]}, "retain: no training row has the id: .*nobody/x"),
        ({"ids": PERSON}, "retain: all 2 rows that it names are to be removed"),
        ({"where": {"column": "town", "values": ["x"]}}, "town"),
        ({"where": {"column": "fact", "values": ["shoe size"]}}, "retain.where: no training row has 'shoe size'"),
    ],
)
def test_rows_that_are_to_stay_must_be_there(retain: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        resolving.run(arguments(tmp_path, {"ids": PERSON}, retain=retain), tmp_path, ignore)


def test_what_stays_can_be_named_by_ids_or_by_a_column(tmp_path: Path) -> None:
    data = open_data(arguments(tmp_path, {"ids": PERSON}))
    ids, gone = data.train_ids(), resolving.positions_of(data, PERSON)
    others = [name for name in ids if name not in PERSON]
    same_fact = [name for name in others if name.endswith("/award")]
    for retain, stay in (
        ({}, others),
        ({"ids": [*PERSON, *others[3:5]]}, others[3:5]),  # those that go are no part of it
        ({"where": {"column": "fact", "values": ["award"]}}, same_fact),
    ):
        asked = RetainSection(**retain).model_dump(mode="json")
        found = resolving.staying(data, gone, asked)
        assert [ids[row] for row in found] == stay
        measured = records_of(data, PERSON, stays=found)
        assert measured.retain.positions.tolist() == found.tolist()


def test_all_rows_cannot_go(tmp_path: Path) -> None:
    request = {"where": {"column": "split", "values": ["train"]}}
    with pytest.raises(DataError, match="all 21 training rows are to be removed"):
        resolving.run(arguments(tmp_path, request), tmp_path, ignore)


def test_what_an_earlier_request_removed_goes_again(tmp_path: Path) -> None:
    """The model that is unlearned from knows it: it was trained on data that still have it."""
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.submit(["person-01/award"], "asked to")
    batch = ledger.drain()
    assert batch is not None and not ledger.removed()
    for status in ("weighed", "unlearned", "verified", "published"):
        ledger.advance(batch, status)
    assert ledger.removed() == {ledger.record_hash("person-01/award")}
    job = arguments(tmp_path, {"ids": PERSON}) | {"ledger": str(tmp_path / "ledger.db")}
    done = resolving.run(job, tmp_path, ignore)
    records = pl.read_parquet(tmp_path / done.files["records"])
    assert dict(records.select("example_id", "why").iter_rows()) == {
        **dict.fromkeys(PERSON, "requested"),
        "person-01/award": resolving.BEFORE,
    }
    assert (done.values["requested"], done.values["records"]) == (2, 3)


def test_near_duplicates_are_found_with_what_they_are_like() -> None:
    texts = ["Anna plays the violin.", "the sea is blue", "Anna plays the violin!", "Anna paints"]
    (one,) = by_text(texts, np.array([0]), 0.7)
    assert (one.position, one.of) == (2, 0) and 0.7 <= one.similarity < 1


def test_a_model_unlearns_and_loads_as_its_own(tmp_path: Path) -> None:
    job = arguments(
        tmp_path,
        {"ids": PERSON},
        weights={"method": "guard", "way": "factors"},
        unlearn={"objective": "npo", "max_epochs": 2, "batch_size": 2, "options": {"retain": "kl"}},
    )
    data = open_data(job)
    checkpoint = tmp_path / training.run(job, tmp_path, ignore).files["checkpoint"]
    trained = checkpoint.rename(tmp_path / "trained.ckpt")
    job |= {"checkpoint": str(trained), "index_path": str(tmp_path / "index")}
    indexing.run(job, tmp_path, ignore)
    store = FactorStore.open(tmp_path / "index")
    assert [(one.position, one.of) for one in by_gradients(store, np.array([0]), -1.0)] == [
        (r, 0) for r in range(1, 21)
    ]
    job["records"] = str(tmp_path / resolving.run(job, tmp_path, ignore).files["records"])
    weighed = {}
    for way in ("two_forwards", "activations", "factors"):
        job["weights"]["way"] = way
        found = weighing.run(job, tmp_path, ignore)
        assert found.values["way"] == way and 1 <= found.values["effective_size"] <= 2
        weighed[way] = pl.read_parquet(tmp_path / "weights.parquet")["alignment"].to_numpy()
    for way in ("activations", "two_forwards"):
        np.testing.assert_allclose(weighed["factors"], weighed[way], rtol=0.05)
    aside = tmp_path / "unlearned"
    aside.mkdir()
    done = unlearning.run(job | {"weights_file": str(tmp_path / "weights.parquet")}, aside, ignore)
    assert 0 < done.values["changed"] <= done.values["tensors"] and done.values["norm"] > 0
    before, after = (trained_model(job, data, path) for path in (trained, aside / done.files["checkpoint"]))
    assert type(before) is type(after)
    assert any((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))
    # towards a short training without them, which leaves nothing behind but what was learned of it
    job["unlearn"] |= {
        "objective": "oracle_matching",
        "options": {},
        "oracle_epochs": 1,
        "kept": 0.9,
        "schedule": "cosine",
    }
    without = str(tmp_path / resolving.run(job, tmp_path, ignore).files["decisions"])
    towards = tmp_path / "towards"
    towards.mkdir()
    found = unlearning.run(
        job | {"weights_file": str(tmp_path / "weights.parquet"), "without": without}, towards, ignore
    )
    assert found.values["changed"] == found.values["tensors"]
    assert {str(path.relative_to(towards)) for path in towards.rglob("*.ckpt")} == {
        found.files["checkpoint"],
        *found.spent,
    } - {"reference.safetensors"}


@pytest.mark.parametrize(
    ("objective", "options", "said"),
    [
        ("dpo", {}, "unlearn.objective: dpo and idk answer questions otherwise; the data holds image"),
        ("rmu", {"layer": "blocks.7"}, "unlearn.options: rmu: the model has no module 'blocks.7'; it has "),
        ("rmu", {}, "layer"),
    ],
)
def test_an_objective_that_data_or_model_cannot_serve_is_told_before_training(
    objective: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tree = {"data": {"class_path": "Digits"}, "request": {"ids": [4]}, "root": tmp_path}
    config = UnlearnConfig.model_validate(tree | {"unlearn": {"objective": objective, "options": options}})
    job = config.model_dump(mode="json") | {"index_asked": []}
    with pytest.raises((DataError, ModelError), match=said):
        prepare.load(job, tmp_path, ignore)


def test_a_classifier_unlearns_by_a_newton_step_of_its_head_alone(tmp_path: Path) -> None:
    config = UnlearnConfig.model_validate(
        {
            "data": {"class_path": "Digits"},
            "model": {"init_args": {"arch": "mlp", "hidden": [16]}},
            "train": {"max_epochs": 1},
            "request": {"ids": [4, 8]},
            "weights": {"method": "uniform"},
            "unlearn": {"objective": "newton", "options": {"l2": 10.0}},
            "root": tmp_path,
        }
    )
    job: dict[str, Any] = config.model_dump(mode="json")
    job |= {"ids": ["4", "8"], "index_path": None, "decisions": None, "index_asked": [], "ledger": None}
    assert len(prepare.load(job, tmp_path, ignore).values["digest"]) == 64
    trained = (tmp_path / training.run(job, tmp_path, ignore).files["checkpoint"]).rename(tmp_path / "trained.ckpt")
    job |= {"checkpoint": str(trained)}
    job["records"] = str(tmp_path / resolving.run(job, tmp_path, ignore).files["records"])
    job["weights_file"] = str(tmp_path / weighing.run(job, tmp_path, ignore).files["weights"])
    done = unlearning.run(job, tmp_path, ignore)
    assert done.values["changed"] == 2 and done.values["newton"]["head"] == "head" and not done.values["warnings"]
    course = json.loads((tmp_path / done.files["course"]).read_text())
    assert course["curve"][0]["forget_loss"] < course["curve"][1]["forget_loss"] and course["weights"] == [1.0] * 2
