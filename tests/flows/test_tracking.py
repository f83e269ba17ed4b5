from __future__ import annotations

from pathlib import Path

import pytest

from flows.errors import ConfigError
from flows.schema import TrackingSection
from flows.tracking import Tracker, tracking_uri


@pytest.fixture(scope="module")
def tracker(workspace: Path) -> Tracker:
    return Tracker(TrackingSection(), workspace)


def checkpoint(folder: Path) -> Path:
    path = folder / "model.ckpt"
    path.write_bytes(b"weights")
    return path


def test_a_run_holds_parameters_metrics_history_inputs_and_a_child(tracker: Tracker, tmp_path: Path) -> None:
    client = tracker._client
    run_id = tracker.start("digits", {"curate.run": "r"})
    tracker.log(params={f"p{i}": i for i in range(130)}, metrics={"ap": 0.5, "unknown": None, "nan": float("nan")})
    tracker.dataset("digits", "ab" * 32, "/data/x.csv", rows=3, context="training")
    history = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}]
    arguments = {"params": {"lr": 1}, "metrics": {"val_accuracy": 0.9}, "history": history}
    child = tracker.training("train", "d" * 64, checkpoint=checkpoint(tmp_path), **arguments)
    tracker.finish()

    parent = client.get_run(run_id)
    assert len(parent.data.params) == 130 and parent.data.metrics == {"ap": 0.5}
    assert parent.info.status == "FINISHED"
    (entry,) = parent.inputs.dataset_inputs
    assert entry.dataset.digest == ("ab" * 32)[:32]
    assert {tag.key: tag.value for tag in entry.tags}["sha256"] == "ab" * 32
    run = client.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == run_id
    assert [(m.step, m.value) for m in client.get_metric_history(child, "train_loss")] == [(1, 2.0), (2, 1.0)]
    assert [file.path for file in client.list_artifacts(child, "checkpoint")] == ["checkpoint/model.ckpt"]


def test_a_run_that_goes_on_keeps_its_child_runs(tracker: Tracker, workspace: Path, tmp_path: Path) -> None:
    run_id = tracker.start("digits", {})
    child = tracker.training("train", "e" * 64, params={}, metrics={}, history=[], checkpoint=None)
    tracker.finish("KILLED")
    again = Tracker(TrackingSection(), workspace)
    assert again.start("digits", {}, resume=run_id) == run_id
    assert again.training("train", "e" * 64, params={}, metrics={}, history=[], checkpoint=None) == child
    assert again.start("digits", {}, resume="0" * 32) != run_id
    elsewhere = Tracker(TrackingSection(experiment="another"), workspace)
    assert elsewhere.start("digits", {}, resume=run_id) != run_id, "the run is to be in the experiment asked for"


def test_a_checkpoint_that_is_asked_for_later_is_added(tracker: Tracker, tmp_path: Path) -> None:
    tracker.start("digits", {})
    arguments: dict[str, object] = {"params": {}, "metrics": {}, "history": []}
    child = tracker.training("train", "a" * 64, checkpoint=None, **arguments)  # type: ignore[arg-type]
    assert tracker.training("train", "a" * 64, checkpoint=checkpoint(tmp_path), **arguments) == child  # type: ignore[arg-type]
    assert [file.path for file in tracker._client.list_artifacts(child, "checkpoint")] == ["checkpoint/model.ckpt"]


def test_a_registered_model_is_found_by_version_and_alias(tracker: Tracker, workspace: Path, tmp_path: Path) -> None:
    tracker.start("digits", {})
    path = checkpoint(tmp_path)
    run = tracker.training("train", "f" * 64, params={}, metrics={}, history=[], checkpoint=path)
    assert tracker.register("my digits", run, {}) == "1"
    assert tracker.register("my digits", run, {}) == "1", "the same run is registered once"
    tracker._client.set_registered_model_alias("my digits", "production", "1")
    for uri in ("models:/my digits/1", "models:/my digits@production"):
        assert tracker.resolve(uri, workspace / "models").read_bytes() == b"weights"


@pytest.mark.parametrize("uri", ["models:/nothing/1", "models:/nothing@production"])
def test_a_model_that_is_not_registered(tracker: Tracker, workspace: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.registered: {uri} in MLflow at sqlite:.*not found"):
        tracker.resolve(uri, workspace / "models")


def test_everything_lies_in_the_workspace_unless_the_user_says_otherwise(
    tracker: Tracker, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracker.uri == f"sqlite:///{workspace}/mlflow.db"
    artifacts = tracker._client.get_run(tracker.start("digits", {})).info.artifact_uri
    assert artifacts.startswith((workspace / "mlflow-artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    assert tracking_uri(TrackingSection(), workspace) == "http://tracking.example"
    assert tracking_uri(TrackingSection(uri="sqlite:////x.db"), workspace) == "sqlite:////x.db"


@pytest.mark.parametrize("uri", ["https://ann:s3cret@tracking.example", "postgresql://db/runs?user=a&password=s3cret"])
def test_a_password_in_the_address_is_refused_and_not_repeated(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri: it holds a password.*MLFLOW_TRACKING_PASSWORD") as refused:
        tracking_uri(TrackingSection(uri=uri), workspace)
    assert "s3cret" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI: it holds a password") as refused:
        tracking_uri(TrackingSection(), workspace)
    assert "s3cret" not in str(refused.value)


def test_an_address_that_is_none_is_told(workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri: expected a URL or a folder"):
        tracking_uri(TrackingSection(uri="http://[tracking.example"), workspace)


@pytest.mark.slow
def test_a_database_that_a_killed_run_left_half_made_is_made_anew(tmp_path: Path) -> None:
    for name in ("mlflow.db.new", "mlflow.db.new-journal"):
        (tmp_path / name).write_text("half of it")
    first = Tracker(TrackingSection(), tmp_path)
    assert not list(tmp_path.glob("mlflow.db.new*"))
    run_id = first.start("digits", {})
    again = Tracker(TrackingSection(), tmp_path)
    assert again.start("digits", {}, resume=run_id) == run_id
