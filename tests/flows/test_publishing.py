"""The alias of a real registry moves last of all, and back whatever ends the run before it is finished."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.artifacts import download_artifacts

from flows.errors import StageError
from flows.files import read_json, write_json
from flows.outputs import RUN, SUMMARY
from flows.publishing import JOURNAL, KNOWN_LAST, Place, published, published_here, register, roll_back
from flows.schema import TrackingSection
from flows.tracking import Tracker


@pytest.fixture(scope="module")
def tracker(workspace: Path) -> Tracker:
    made = Tracker(TrackingSection(), workspace)
    made.start("publishing", {})
    return made


Publish = Callable[..., Any]


@pytest.fixture
def publish(tracker: Tracker, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Place, Publish]:
    """A registered model of the test's own, and what publishes another version of it, with this content."""
    place = Place(tracker.uri, request.node.name[:60], "champion")

    def publishing(content: bytes, problems: tuple[str, ...] = ()) -> Any:
        model = tmp_path / "model.ckpt"
        model.write_bytes(content)
        nothing: dict[str, Any] = {"params": {}, "metrics": {}, "history": []}
        trained = tracker.training(place.name, content.hex(), checkpoint=model, **nothing)
        version = register(tracker, place, trained, {})
        return published(
            tracker, place, tmp_path, model, version, {"curate.evidence": "e"}, lambda: list(problems), tmp_path
        )

    return place, publishing


def status_of(place: Place, version: str) -> str:
    return str(place._client.get_model_version(place.name, version).tags["curate.status"])


def test_the_alias_moves_to_each_new_version_and_back_when_the_run_fails(
    publish: tuple[Place, Publish], tmp_path: Path, tracker: Tracker
) -> None:
    place, publishing = publish
    with publishing(b"one") as found:
        assert place.version() == "1" and read_json(tmp_path / JOURNAL), "noted until the run is finished"
    assert found["registered"]["version"] == "1" and (found["alias_before"], found["alias_after"]) == (None, "1")
    assert not (tmp_path / JOURNAL).exists() and status_of(place, "1") == "published"
    with pytest.raises(OSError, match="disk is full"), publishing(b"two"):
        assert place.version() == "2"
        raise OSError("disk is full")
    assert place.version() == "1" and status_of(place, "2") == "rolled_back"
    with publishing(b"two") as found:  # the next start: the same version, completed
        pass
    assert (found["alias_before"], found["alias_after"]) == ("1", "2") and status_of(place, "2") == "published"
    for uri in (f"models:/{place.name}/2", f"models:/{place.name}@champion"):
        assert tracker.tags(uri)["curate.evidence"] == "e"


def test_what_does_not_hold_is_never_published(publish: tuple[Place, Publish], tmp_path: Path) -> None:
    place, publishing = publish
    with (
        pytest.raises(StageError, match="is not published: signature: wrong"),
        publishing(b"one", ("signature: wrong",)),
    ):
        pytest.fail("published")
    assert place.version() is None and status_of(place, "1") == "rolled_back"
    entered = publishing(b"two")
    (tmp_path / "model.ckpt").write_bytes(b"other")  # not what was logged for registration
    with pytest.raises(StageError, match="version 2 in the registry is not the one that was checked"), entered:
        pytest.fail("published")
    assert place.version() is None and not (tmp_path / JOURNAL).exists() and not (tmp_path / ".registered").exists()


def test_a_start_that_was_killed_is_undone_by_the_next(publish: tuple[Place, Publish], tmp_path: Path) -> None:
    place, publishing = publish
    assert roll_back(tmp_path) is None
    with publishing(b"one"):
        pass
    block = publishing(b"two")
    block.__enter__()
    write_json(tmp_path / SUMMARY, {"status": "published", "alias_after": "2", "name": "people"})
    note = read_json(tmp_path / JOURNAL)
    assert note is not None and place.version() == "2"
    with ThreadPoolExecutor(1) as another:  # the block has the lock: whoever publishes is waited for
        waiting = another.submit(roll_back, tmp_path)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        assert place.version() == "2"
        (tmp_path / JOURNAL).unlink()  # as once it has ended well
        block.__exit__(None, None, None)
        assert waiting.result() is None and place.version() == "2"
    # what kill -9 leaves: the note in the workspace, the alias on the new version, and perhaps the summary
    write_json(tmp_path / JOURNAL, note)
    assert "version 2; alias champion is back to version 1" in str(roll_back(tmp_path))
    assert place.version() == "1" and not (tmp_path / JOURNAL).exists()
    assert read_json(tmp_path / SUMMARY) == {"status": "publishing", "name": "people"} | dict.fromkeys(KNOWN_LAST)
    write_json(tmp_path / JOURNAL, note)
    place.move("2")
    place.move(None)  # somebody has taken it away since: it is theirs
    assert roll_back(tmp_path) is None and place.version() is None
    assert not (tmp_path / JOURNAL).exists()
    write_json(tmp_path / JOURNAL, note)
    place.move("2")
    write_json(tmp_path / RUN, {"status": "finished"})
    assert roll_back(tmp_path) is None and place.version() == "2", "a finished run stays published"
    assert not (tmp_path / JOURNAL).exists()


def test_what_is_registered_nowhere_is_taken_back_too(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    with pytest.raises(OSError, match="disk is full"), published_here(run, tmp_path):
        write_json(run / SUMMARY, {"status": "published"})
        raise OSError("disk is full")
    assert (read_json(run / SUMMARY) or {})["status"] == "publishing" and not (tmp_path / JOURNAL).exists()
    with published_here(run, tmp_path):
        note = read_json(tmp_path / JOURNAL)
        write_json(run / SUMMARY, {"status": "published"})
    assert (read_json(run / SUMMARY) or {})["status"] == "published" and not (tmp_path / JOURNAL).exists()
    write_json(tmp_path / JOURNAL, note or {})
    assert roll_back(tmp_path) is None and (read_json(run / SUMMARY) or {})["status"] == "publishing"


def test_the_copy_of_a_summary_that_is_taken_back_goes_back_too(tracker: Tracker, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    said = {"status": "published", "mlflow_run_id": tracker.run_id, "mlflow_tracking_uri": tracker.uri}

    def copy() -> Any:
        return read_json(
            Path(download_artifacts(run_id=tracker.run_id, artifact_path=SUMMARY, tracking_uri=tracker.uri))
        )

    with pytest.raises(OSError, match="disk is full"), published_here(run, tmp_path):
        note = read_json(tmp_path / JOURNAL)
        write_json(run / SUMMARY, said)
        tracker.artifacts([run / SUMMARY])
        raise OSError("disk is full")
    assert copy()["status"] == "publishing"
    write_json(run / SUMMARY, said)
    tracker.artifacts([run / SUMMARY])
    write_json(tmp_path / JOURNAL, note or {})  # killed there
    assert copy()["status"] == "published" and roll_back(tmp_path) is None
    assert copy()["status"] == "publishing" == (read_json(run / SUMMARY) or {})["status"]
    write_json(run / SUMMARY, said | {"mlflow_run_id": "gone"})
    write_json(tmp_path / JOURNAL, note or {})
    assert roll_back(tmp_path) is None and not (tmp_path / JOURNAL).exists(), (
        "MLflow not having the run keeps nobody up"
    )
