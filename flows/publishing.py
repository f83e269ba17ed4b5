"""A model becomes the one in use when the alias of MLflow's registry moves to it: last of all, and back if anything fails.

In this order, so that nothing says what has not happened, wherever it is killed:

    the model becomes a version, which no alias points to; the evidence names it, as the one to be published
    summary.json says `publishing`, the workspace's journal what the alias points to
    the alias moves: from here on the model is in use
    summary.json says `published`, the run is marked finished: from here on nothing goes back
    the journal goes, the ledger says `published`

Whatever ends a run before it is finished, the summary, MLflow's copy of it, and the alias go back: at once where an error ends
it, with the next start of any run in the workspace where it was killed (the same command may by then be another run: its model
may be named by an alias).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from curation.unlearning.statuses import PUBLISHED
from flows.errors import StageError
from flows.files import digest_file, read_json, write_json
from flows.outputs import RUN, SUMMARY
from flows.tracking import Tracker
from lorif_core.atomic import remove

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

JOURNAL = "publishing.json"
"""In the workspace: what it takes to undo the publication that is under way."""
LOCK = "publishing.lock"
"""Beside it: what keeps runs of a workspace from publishing at once."""
PUBLISHING = "publishing"
"""Status in the summary of a run whose model may be published, until it is."""
KNOWN_LAST = ("registered", "alias", "alias_before", "alias_after")
"""Keys of the summary that have a value once it is."""
EVIDENCE_TAG = "curate.evidence"
"""Tag of a version: sha256 of its evidence."""
STATUS = "curate.status"
"""Tag of a version: registered, published or rolled_back (until it is published after all)."""


@dataclass(frozen=True)
class Place:
    """Where a model is published.

    Attributes:
        uri: of the registry.
        name: of the registered model.
        alias: that moves to it; None: none does.
    """

    uri: str
    name: str
    alias: str | None

    def version(self) -> str | None:
        """The version that the alias points to; None where there is none."""
        aliases: Mapping[str | None, str] = {}
        with _if_there():
            aliases = self._client.get_registered_model(self.name).aliases
        return None if self.alias not in aliases else str(aliases[self.alias])

    def move(self, version: str | None) -> None:
        """Let the alias point to a version, or to none."""
        if self.alias is None:
            return
        if version is None:
            self._client.delete_registered_model_alias(self.name, self.alias)
        else:
            self._client.set_registered_model_alias(self.name, self.alias, version)

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        """Tag a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, version, key, value)

    @property
    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)


def register(tracker: Tracker, place: Place, trained: str, tags: Mapping[str, str]) -> str:
    """Make a model a version of the registered one, to which no alias moves yet; repeated, it is the same. Gives the version.

    Args:
        tracker: that recorded its training.
        place: where it is to be published.
        trained: MLflow run of its training.
        tags: of the version.
    """
    return tracker.register(place.name, trained, {**tags, STATUS: "registered"})


@contextmanager
def published(
    tracker: Tracker,
    place: Place,
    folder: Path,
    model: Path,
    version: str,
    tags: Mapping[str, str],
    check: Callable[[], list[str]],
    home: Path,
) -> Iterator[dict[str, Any]]:
    """Register a model and, if the checks hold, move the alias to it; left by an error, the alias is where it was.

    Args:
        tracker: that recorded its training.
        place: where it is published.
        folder: of the run.
        model: the checkpoint that was checked.
        version: of it in the registry.
        tags: of the version.
        check: says what speaks against it, last of all before the alias moves.
        home: the workspace; the intention is noted there.

    Yields:
        ``registered`` (name and version), ``alias``, and the versions it points to, ``alias_before`` and ``alias_after``.

    Raises:
        StageError: something speaks against it, or somebody else has moved the alias meanwhile.
    """
    with FileLock(home / LOCK):
        _undo(home)
        before = place.version()
        to = {"uri": place.uri, "name": place.name, "alias": place.alias, "before": before, "version": version}
        with _noted(home, folder, to):
            place.tag(version, tags)
            problems = check()
            if _registered_digest(tracker, place, version, folder / ".registered") != digest_file(model):
                problems.append(f"the checkpoint of version {version} in the registry is not the one that was checked")
            if place.version() != before:
                problems.append(f"the alias {place.alias} was moved by somebody else meanwhile")
            if problems:
                raise StageError("publish", f"{place.name} is not published: {'; '.join(problems)}")
            place.move(version)
            after = place.version()
            if after != (version if place.alias is not None else None):
                raise StageError("publish", f"the alias {place.alias} points to {after}, expected version {version}")
            place.tag(version, {STATUS: "published"})
            yield {
                "registered": {"name": place.name, "version": version},
                "alias": place.alias,
                "alias_before": before,
                "alias_after": after,
            }


@contextmanager
def published_here(folder: Path, home: Path) -> Iterator[None]:
    """The same for a model that is registered nowhere: left by an error, the summary does not say that it is published.

    Args:
        folder: of the run.
        home: the workspace.
    """
    with FileLock(home / LOCK):
        _undo(home)
        with _noted(home, folder, None):
            yield


def roll_back(home: Path) -> str | None:
    """Undo what a run that did not end well has published; gives a sentence where an alias went back.

    Args:
        home: the workspace; who publishes meanwhile is waited for.
    """
    if not (home / JOURNAL).exists():
        return None
    with FileLock(home / LOCK):
        return _undo(home)


@contextmanager
def _noted(home: Path, folder: Path, to: Mapping[str, Any] | None) -> Iterator[None]:
    """Hold what it takes to undo what is done inside; left by an error, it is undone."""
    write_json(home / JOURNAL, {"folder": str(folder), "to": to})
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished:
            _undo(home)
    (home / JOURNAL).unlink(missing_ok=True)


def _undo(home: Path) -> str | None:
    """Bring summary and alias back, in the order in which nothing says what is not so; a finished run stays as it is."""
    note = read_json(home / JOURNAL)
    if note is None:
        return None
    folder, to, said = Path(note["folder"]), note["to"], None
    if (read_json(folder / RUN) or {}).get("status") != "finished":
        try:
            withdraw(folder)
        finally:  # a full disk does not keep the alias from going back
            if to is not None and to["before"] != to["version"]:
                said = _move_back(Place(to["uri"], to["name"], to["alias"]), to["version"], to["before"])
        _record_again(folder)
    (home / JOURNAL).unlink(missing_ok=True)
    return said


def _move_back(place: Place, version: str, before: str | None) -> str | None:
    """Let the alias point to where it was, unless somebody has moved it since; gives a sentence where it was moved."""
    said = None
    if place.alias is not None and place.version() == version:
        place.move(before)
        where = f"back to version {before}" if before is not None else "taken away, as it was before"
        said = f"{place.name}: a start that did not finish published version {version}; alias {place.alias} is {where}"
    with _if_there():
        place.tag(version, {STATUS: "rolled_back"})
    return said


def withdraw(folder: Path) -> None:
    """Let the summary say again that the model is not published yet."""
    said = read_json(folder / SUMMARY)
    if said is not None and said["status"] == PUBLISHED:
        write_json(folder / SUMMARY, said | {"status": PUBLISHING} | dict.fromkeys(KNOWN_LAST))


def _record_again(folder: Path) -> None:
    """Let MLflow's copy of a summary say what the summary does; that it cannot keeps no later run from starting."""
    from mlflow import MlflowClient

    said = read_json(folder / SUMMARY)
    if said is None or said.get("mlflow_run_id") is None:
        return
    try:
        client = MlflowClient(tracking_uri=said["mlflow_tracking_uri"])
        client.log_artifact(said["mlflow_run_id"], str(folder / SUMMARY))
    except Exception as error:  # noqa: BLE001 - of whatever keeps the artifacts: a disk, S3, MLflow's server
        logger.warning("MLflow's copy of %s is as it was: %s", folder / SUMMARY, error)


@contextmanager
def _if_there() -> Iterator[None]:
    """Pass over a model or version that the registry does not have, or has no more."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        yield
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise


def _registered_digest(tracker: Tracker, place: Place, version: str, aside: Path) -> str:
    """sha256 (hex) of a version's checkpoint, as the registry hands it out."""
    remove(aside)
    try:
        return digest_file(tracker.resolve(f"models:/{place.name}/{version}", aside))
    finally:
        remove(aside)
