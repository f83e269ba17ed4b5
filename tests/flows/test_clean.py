"""Whole runs of clean: real data, real stages, a real Prefect server and a real MLflow database."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient

from curation.errors import ModelError
from flows.cli import main
from flows.config import find_config, load_config
from flows.files import read_json
from flows.schema import CleanConfig
from flows.stages import prepare
from flows.workspace import DAY

EPOCHS = "4"
RESULTS = [
    "cleaned.parquet",
    "config.yaml",
    "decisions.parquet",
    "report.html",
    "run.json",
    "scores.parquet",
    "summary.json",
]

pytestmark = pytest.mark.usefixtures("prefect_server", "one_stage_process")


@pytest.fixture(scope="module")
def curate(workspace: Path) -> Callable[..., int]:
    def run(*tokens: str) -> int:
        command = ["clean", "--config", "clean_digits", "--workspace", str(workspace)]
        return main([*command, "--train.max_epochs", EPOCHS, *tokens])

    return run


@pytest.fixture(scope="module")
def first(curate: Callable[..., int], workspace: Path) -> dict[str, Any]:
    """The summary of the first run, as it was when it ended."""
    assert curate() == 0
    (folder,) = (workspace / "runs").iterdir()
    assert sorted(path.name for path in folder.glob("[!.]*")) == RESULTS
    return json.loads((folder / "summary.json").read_text())


def test_the_summary_has_the_promised_keys(first: dict[str, Any]) -> None:
    assert first["status"] == "finished"
    assert first["n_examples"] + first["n_validation"] == 1797
    assert first["n_planted"] == 115
    assert (
        0
        < first["n_flagged_planted"]
        <= first["n_flagged"]
        == sum(first["decisions"].values()) - first["decisions"]["keep"]
    )
    assert first["average_precision"] > 0.9
    assert 0.5 < first["accuracy_before"] <= 1 and 0.5 < first["accuracy_after"] <= 1
    assert {"load", "train", "index", "score", "decide", "apply", "retrain", "compare", "report", "total"} <= set(
        first["seconds"]
    )
    assert {"torch", "prefect", "mlflow", "lorif-curation"} <= set(first["versions"])
    assert set(first["seeds"]) == {"train", "index"} and {"data", "run", "code"} <= set(first["digests"])


def test_the_tables_agree_with_the_summary(first: dict[str, Any]) -> None:
    decisions, scores, cleaned = (pl.read_parquet(first["files"][name]) for name in ("decisions", "scores", "cleaned"))
    assert decisions["example_id"].to_list() == scores["example_id"].to_list()
    dropped = decisions.filter(decision="drop")
    assert len(dropped) == first["n_flagged"]
    assert len(cleaned) == 1797 - len(dropped)
    assert not set(dropped["example_id"]) & set(cleaned["example_id"])
    assert all("strongest supporters" in reason for reason in dropped["reason"])


def test_the_report_shows_the_worst_row(first: dict[str, Any]) -> None:
    page = Path(first["files"]["report"]).read_text()
    worst = pl.read_parquet(first["files"]["decisions"]).sort("score", descending=True)["reason"][0]
    assert worst in page and "data:image/png" in page


def test_one_mlflow_run_holds_it_all(first: dict[str, Any]) -> None:
    client = MlflowClient(first["mlflow_tracking_uri"])
    run = client.get_run(first["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy_after"] == first["accuracy_after"]
    assert run.data.params["data.init_args.noise.rate"] == "0.08"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == set(RESULTS) - {"run.json", "config.yaml"}
    assert len(run.inputs.dataset_inputs) == 1
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert {child.info.run_name for child in children} == {"train", "retrain"}
    for child in children:
        assert child.data.metrics["val_accuracy"] > 0.5
        assert [file.path for file in client.list_artifacts(child.info.run_id, "checkpoint")] == [
            "checkpoint/model.ckpt"
        ]


def test_prefect_shows_the_tasks_the_top_decisions_and_a_link(first: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        key = ArtifactFilter(key=ArtifactFilterKey(like_="clean-"))
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=key)}
    assert set(artifacts) == {"clean-decisions", "clean-report"}
    assert "report.html" in str(artifacts["clean-report"].data)
    assert "strongest supporters" in str(artifacts["clean-decisions"].data)


def test_a_second_run_finds_nothing_to_do_and_keeps_the_figures(
    first: dict[str, Any], curate: Callable[..., int], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_ago = time.time() - 40 * DAY
    for path in (workspace / "stages").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert curate() == 0
    assert "Unchanged" in capsys.readouterr().out
    assert main(["workspace", "prune", "--workspace", str(workspace)]) == 0
    assert capsys.readouterr().out.startswith("0 stages"), "what an unchanged run is made of is in use"
    again = json.loads(Path(first["files"]["report"]).with_name("summary.json").read_text())
    assert again.pop("status") == "unchanged" and again.pop("checked")["seconds"] > 0
    assert again == {key: value for key, value in first.items() if key != "status"}


def test_what_is_newly_asked_of_mlflow_is_done_with_the_stages_there_are(
    first: dict[str, Any], curate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("--tracking.register_as", "digits") == 0
    assert "7 stages reused" in capsys.readouterr().out
    client = MlflowClient(first["mlflow_tracking_uri"])
    (version,) = client.search_model_versions("name = 'digits'")
    assert client.get_run(str(version.run_id)).data.tags["mlflow.parentRunId"] == first["mlflow_run_id"]
    assert curate("--tracking.register_as", "digits") == 0 and curate() == 0
    assert capsys.readouterr().out.count("Unchanged") == 2, "it has what is asked for, and more"
    assert curate("--tracking.experiment", "other") == 0
    (run,) = client.search_runs([client.get_experiment_by_name("other").experiment_id], "tags.`curate.run` != ''")
    assert run.data.metrics["accuracy_after"] == first["accuracy_after"] and run.info.status == "FINISHED"


def test_another_rule_reuses_the_model_and_goes_into_a_folder_of_its_own(
    first: dict[str, Any], curate: Callable[..., int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert curate("--decide.action", "review", "--output-dir", str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    # Nothing is edited when a person is to decide, so the model after is the model before.
    assert {"train", "index", "score", "retrain"} <= set(summary["reused"])
    assert summary["decisions"]["review"] == summary["n_flagged"] == first["n_flagged"]
    assert summary["accuracy_difference"] == 0 and summary["accuracy_after"] == first["accuracy_before"]
    assert len(pl.read_parquet(out / "cleaned.parquet")) == 1797
    assert curate("--decide.action", "relabel", "--output-dir", str(out)) == 2, "the folder holds another run"
    assert json.loads((out / "summary.json").read_text()) == summary


def test_a_loaded_model_and_index_must_be_of_these_data(first: dict[str, Any], workspace: Path, tmp_path: Path) -> None:
    (index,) = (workspace / "stages").glob("index-*/index")
    trained = {
        read_json(path.parent / "job.json")["arguments"]["decisions"] is None: path
        for path in (workspace / "stages").glob("train-*/model.ckpt")
    }

    def load(checkpoint: Path, **overrides: Any) -> dict[str, Any]:
        paths = {"model.checkpoint": str(checkpoint), "index.path": str(index)}
        config = load_config(CleanConfig, find_config("clean_digits"), paths | overrides)
        asked = sorted(key.partition(".")[2] for key in overrides if key.startswith("index."))
        arguments = config.model_dump(mode="json") | {"data_digest": None, "index_asked": asked}
        return prepare.load(arguments, tmp_path, lambda text, done, total: None).values

    loaded = load(trained[True])
    assert loaded["checkpoint"] and loaded["index"] and loaded["digest"] == first["digests"]["data"]
    assert load(trained[True], **{"index.damping": 0.5})["index"] == loaded["index"]
    with pytest.raises(
        ModelError, match=r"index.damping: .* was made with 0.5, got 2.0: leave the option out"
    ) as error:
        load(trained[True], **{"index.damping": 2, "index.bits": 32})
    assert "index.bits: " in str(error.value)
    with pytest.raises(ModelError, match=r"index.path: .*manifest.json is a file; expected the folder of an index"):
        load(trained[True], **{"index.path": str(index / "manifest.json")})
    with pytest.raises(ModelError, match=r"index.path: .* was made from another model"):
        load(trained[False])
    with pytest.raises(ModelError, match=r"index.path: .*the data or its order changed"):
        load(trained[True], **{"data.init_args.noise.seed": 2})
    with pytest.raises(ModelError, match="is a checkpoint of another model"):
        load(trained[True], **{"model.init_args": {"arch": "mlp"}})
