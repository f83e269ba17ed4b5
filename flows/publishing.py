"""A model becomes the one in use when the alias of MLflow's registry moves to it: last of all, and back if anything fails.

The intention is noted in the run's folder before the registry is touched. Whatever ends the run before it is finished, the
alias goes back: at once where an error ends it, with the next start of the same run where it was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from flows.errors import StageError
from flows.files import digest_file, read_json, write_json
from flows.tracking import Tracker
from lorif_core.atomic import remove

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOURNAL = "publishing.json"
STATUS = "curate.status"
"""Tag of a version: registered, published or rolled_back."""


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
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            aliases = self._client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return None
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


@contextmanager
def published(
    tracker: Tracker,
    place: Place,
    folder: Path,
    model: Path,
    trained: str,
    tags: Mapping[str, str],
    check: Callable[[], list[str]],
    lock: Path,
) -> Iterator[dict[str, Any]]:
    """Register a model and, if the checks hold, move the alias to it; left by an error, the alias is where it was.

    Args:
        tracker: that recorded its training.
        place: where it is published.
        folder: of the run; the intention is noted there.
        model: the checkpoint that was checked.
        trained: MLflow run of its training.
        tags: of the version.
        check: says what speaks against it, last of all before the alias moves.
        lock: file that keeps runs of this workspace from publishing at once.

    Yields:
        ``registered`` (name and version), ``alias``, and the versions it points to, ``alias_before`` and ``alias_after``.

    Raises:
        StageError: something speaks against it, or somebody else has moved the alias meanwhile.
    """
    with FileLock(lock):
        before = place.version()
        note = {"uri": place.uri, "name": place.name, "alias": place.alias, "before": before, "version": None}
        write_json(folder / JOURNAL, note)
        version = tracker.register(place.name, trained, tags)
        place.tag(version, {**tags, STATUS: "registered"})
        write_json(folder / JOURNAL, note | {"version": version})
        finished = False
        try:
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
            finished = True
        finally:
            if not finished:
                roll_back(folder)
        settle(folder)


def roll_back(folder: Path) -> str | None:
    """Undo what a run that did not end well has published; gives a sentence where there was something to undo."""
    note = read_json(folder / JOURNAL)
    if note is None:
        return None
    place, version, before = Place(note["uri"], note["name"], note["alias"]), note["version"], note["before"]
    said = None
    if version is not None and before != version:
        if place.version() == version:
            place.move(before)
            where = f"back to version {before}" if before is not None else "taken away, as it was before"
            said = (
                f"{place.name}: a start that did not finish published version {version}; alias {place.alias} is {where}"
            )
        place.tag(version, {STATUS: "rolled_back"})
    settle(folder)
    return said


def settle(folder: Path) -> None:
    """Forget the intention: the run is finished, or what it did is undone."""
    (folder / JOURNAL).unlink(missing_ok=True)


def _registered_digest(tracker: Tracker, place: Place, version: str, aside: Path) -> str:
    """sha256 (hex) of a version's checkpoint, as the registry hands it out."""
    remove(aside)
    try:
        return digest_file(tracker.resolve(f"models:/{place.name}/{version}", aside))
    finally:
        remove(aside)
