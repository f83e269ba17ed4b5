"""MLflow: one run for a job, a child run for every training. Explicit run ids only (MLflow's active run is a thread's)."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from filelock import FileLock

from flows.errors import ConfigError
from flows.files import digest_of
from flows.schema import TrackingSection
from flows.urls import has_password
from lorif_core.atomic import sync_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_PARAM = 6000  # characters of one parameter's value that MLflow keeps


def tracking_uri(section: TrackingSection, workspace: Path) -> str:
    """Where runs are recorded: the configuration's, the user's MLFLOW_TRACKING_URI, or a database in the workspace.

    Raises:
        ConfigError: it is no URL, or holds a password.
    """
    given, source = section.uri, "tracking.uri"
    if not given:
        given, source = os.environ.get("MLFLOW_TRACKING_URI"), "MLFLOW_TRACKING_URI"
    if not given:
        return f"sqlite:///{workspace.resolve()}/mlflow.db"
    try:
        secret = has_password(given)
    except ValueError:  # which may quote a password
        raise ConfigError(f"{source}: expected a URL or a folder, this is neither") from None
    if secret:
        raise ConfigError(
            f"{source}: it holds a password, which summary.json, the pages and the log would keep: leave it out and give it in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or to the database's driver (PGPASSWORD or ~/.pgpass)"
        )
    return given


def _make_database(file: Path) -> None:
    """MLflow's database, made aside and renamed where there is none: a migration that is killed half-way cannot be gone on with."""
    from mlflow import MlflowClient

    if file.exists():
        return
    aside = file.with_name(f"{file.name}.new")
    for left in file.parent.glob(f"{aside.name}*"):  # SQLite's journal lies beside it
        left.unlink()
    MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
    aside.replace(file)
    sync_folder(file.parent)


class Tracker:
    """Records one job.

    Attributes:
        uri: the tracking URI.
        run_id: the parent run, once `start` was called.
    """

    def __init__(self, section: TrackingSection, workspace: Path) -> None:
        """Connect, and create the database and the experiment when they are new.

        Raises:
            ConfigError: MLflow cannot be reached or refuses.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.uri = tracking_uri(section, workspace)
        self.run_id: str | None = None
        self._client: MlflowClient
        own = self.uri == f"sqlite:///{workspace.resolve()}/mlflow.db"
        location = (workspace.resolve() / "mlflow-artifacts").as_uri() if own else None
        # Several processes that create a new database at once crash in its migration.
        with FileLock(workspace / "mlflow.lock"):
            try:
                if own:
                    _make_database(workspace.resolve() / "mlflow.db")
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                experiment = self._client.get_experiment_by_name(section.experiment)
                if experiment is None:
                    self._experiment = self._client.create_experiment(section.experiment, artifact_location=location)
                elif experiment.lifecycle_stage != "active":
                    raise ConfigError(
                        f"tracking.experiment: MLflow's experiment {section.experiment!r} at {self.uri} is deleted: "
                        "restore it or name another"
                    )
                else:
                    self._experiment = experiment.experiment_id
            except MlflowException as error:
                raise ConfigError(
                    f"tracking: MLflow at {self.uri} cannot be used; correct tracking.uri or MLFLOW_TRACKING_URI, or leave out "
                    f"both for a database in the workspace: {_first_line(error)}"
                ) from error

    def start(self, name: str, tags: Mapping[str, str], resume: str | None = None) -> str:
        """Open the parent run, or go on with ``resume`` when the experiment still has it."""
        from mlflow.exceptions import MlflowException

        if resume is not None:
            try:
                run = self._client.get_run(resume)
            except MlflowException:
                resume = None  # another database than before: a new run there
            else:
                if run.info.lifecycle_stage == "active" and run.info.experiment_id == self._experiment:
                    self._client.update_run(resume, status="RUNNING")
                    self.run_id = resume
                    return resume
        run = self._client.create_run(self._experiment, run_name=name, tags=dict(tags))
        self.run_id = run.info.run_id
        return self.run_id

    def training(
        self,
        name: str,
        digest: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
        checkpoint: Path | None,
    ) -> str:
        """A finished child run for one training; one of the same digest under this parent only gets what it lacks."""
        parent = self._parent()
        found = self._client.search_runs(
            [self._experiment],
            f"tags.`mlflow.parentRunId` = '{parent}' and tags.`curate.stage` = '{name}-{digest[:16]}' "
            "and attributes.status = 'FINISHED'",
            max_results=1,
        )
        if found:
            run_id = str(found[0].info.run_id)
            if checkpoint is not None and not self._client.list_artifacts(run_id, "checkpoint"):
                self._client.log_artifact(run_id, str(checkpoint), "checkpoint")
            return run_id
        tags = {"mlflow.parentRunId": parent, "curate.stage": f"{name}-{digest[:16]}"}
        run_id = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        self.log(run_id, params=params, metrics=metrics, history=history)
        if checkpoint is not None:
            self._client.log_artifact(run_id, str(checkpoint), "checkpoint")
        self._client.set_terminated(run_id)
        return str(run_id)

    def dataset(self, name: str, digest: str, source: str, *, rows: int, context: str) -> None:
        """Record an example table as an input of the parent run.

        Args:
            name: its name.
            digest: its full sha256; MLflow's own field takes 36 characters, so the whole one goes into a tag.
            source: where it comes from.
            rows: number of rows.
            context: what it was used for.
        """
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(
            name=name,
            digest=digest[:32],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": rows}),
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("sha256", digest)]
        self._client.log_inputs(self._parent(), [DatasetInput(entry, tags)])

    def log(
        self,
        run_id: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float | None] | None = None,
        history: Sequence[Mapping[str, float]] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add to a run (the parent by default); a parameter that is there keeps its value.

        ``history`` has one mapping an epoch, with its number in ``epoch``.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, 0) for name, value in (metrics or {}).items() if _finite(value)]
        for row in history:
            step = int(row.get("epoch", 0))
            points += [Metric(f"{k}", float(v), now, step) for k, v in row.items() if k != "epoch" and _finite(v)]
        target = run_id or self._parent()
        there = self._client.get_run(target).data.params if params else {}
        new = {name: value for name, value in (params or {}).items() if name not in there}
        texts = [Param(name, str(value)[:_MAX_PARAM]) for name, value in new.items()]
        notes = [RunTag(name, value) for name, value in (tags or {}).items()]
        for first in range(0, max(len(points), 1), 1000):  # MLflow takes 1000 metrics and 100 parameters at a time
            self._client.log_batch(target, metrics=points[first : first + 1000], tags=notes if first == 0 else [])
        for first in range(0, len(texts), 100):
            self._client.log_batch(target, params=texts[first : first + 100])

    def artifacts(self, files: Sequence[Path]) -> None:
        """Copy ``files`` into the parent run."""
        for path in files:
            self._client.log_artifact(self._parent(), str(path))

    def register(self, name: str, run_id: str, tags: Mapping[str, str]) -> str:
        """Register the checkpoint of training ``run_id`` as a new version of model ``name``; returns the version."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

        source = f"{self._client.get_run(run_id).info.artifact_uri}/checkpoint"
        known = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        if known:
            return str(known[0].version)
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        return str(self._client.create_model_version(name, source, run_id=run_id, tags=dict(tags)).version)

    def resolve(self, uri: str, folder: Path) -> Path:
        """The local checkpoint of a registered model.

        Args:
            uri: ``models:/name/1`` or ``models:/name@alias``.
            folder: where it is copied to, one folder a version.

        Raises:
            ConfigError: no such model, or it holds no checkpoint.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        try:
            name, version = self._version(uri)
            source = self._client.get_model_version_download_uri(name, version)
            target = folder / digest_of([self.uri, name, version, source])[:16]
            target.mkdir(parents=True, exist_ok=True)
            local = Path(download_artifacts(artifact_uri=source, dst_path=str(target), tracking_uri=self.uri))
        except (MlflowException, OSError) as error:
            raise ConfigError(f"model.registered: {uri} in MLflow at {self.uri}: {_first_line(error)}") from error
        checkpoints = [local] if local.is_file() else sorted(local.rglob("*.ckpt"))
        if len(checkpoints) != 1:
            raise ConfigError(
                f"model.registered: {uri} holds {len(checkpoints)} checkpoints (*.ckpt) at {source}, expected one; "
                "name the file with model.checkpoint instead"
            )
        return checkpoints[0]

    def tags(self, uri: str) -> dict[str, str]:
        """The tags of a registered model's version; ``uri`` as for `resolve`, which has found it."""
        return dict(self._client.get_model_version(*self._version(uri)).tags)

    def _version(self, uri: str) -> tuple[str, str]:
        """Name and version of a registered model."""
        name, _, alias = uri.removeprefix("models:/").partition("@")
        if alias:
            return name, str(self._client.get_model_version_by_alias(name, alias).version)
        name, _, version = name.rpartition("/")
        return name, version

    def inside(self, folder: Path) -> bool:
        """Whether everything that MLflow keeps lies in ``folder``."""
        store = self.uri.removeprefix("sqlite:///")
        artifacts = str(self._client.get_experiment(self._experiment).artifact_location)
        places = [Path(store), Path(artifacts.removeprefix("file://"))]
        return "://" not in store and all(folder.resolve() in place.parents for place in places)

    def registered(self) -> list[Path]:
        """The folders of the registered model versions that lie on this machine."""
        from mlflow.store.entities import PagedList

        found, token = list[Path](), None
        while True:
            page: PagedList[Any] = self._client.search_model_versions(page_token=token)
            found += [Path(str(one.source).removeprefix("file://")) for one in page]
            token = page.token
            if not token:
                return found

    def finish(self, status: str = "FINISHED") -> None:
        """Close the parent run with MLflow's ``status`` (FINISHED, FAILED, KILLED)."""
        if self.run_id is not None:
            self._client.set_terminated(self.run_id, status)

    def _parent(self) -> str:
        if self.run_id is None:
            raise RuntimeError("Tracker.start was not called")
        return self.run_id


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
