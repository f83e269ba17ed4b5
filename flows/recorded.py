"""What every run that is recorded does around its stages: its folder of results, its MLflow run, and whether it is new."""

from __future__ import annotations

import datetime
import re
import shlex
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, ClassVar

import yaml

from curation.errors import CurationError
from flows import workspace
from flows.errors import StageError
from flows.files import digest_of, write_json
from flows.modelling import Chosen, ModelRun
from flows.outputs import SUMMARY, RunFolder, check_free, check_writable
from flows.runner import Finished
from flows.schema import NOT_KEPT, IndexConfig, IndexSection, RecordedConfig
from flows.screen import Screen
from flows.services import Services
from flows.tracking import Tracker, tracking_uri
from lorif_core.atomic import write_bytes

CONFIG = "config.yaml"  # the whole configuration, with every default and every folder written out

_MLFLOW_NAME = re.compile(r"[\w./: -]+")

# What load found out that decides the results beside the options.
_CONTENTS = ("digest", "table", "truth", "model", "checkpoint", "index")


class RecordedRun(ModelRun):
    """A run with a folder of results and an MLflow run. Use it as a context manager: both are closed, however it ends.

    Attributes:
        job: the command of the run.
        unchanged_status: what the summary says of a run that has nothing to do; None: what it said before.
        secret: sections of the configuration, and files of the results, that MLflow is not given.
        command: the command line that repeats the run, known after `prepare`.
        services: MLflow and Prefect.
        unchanged: the summary of the former run when nothing has changed since, known after `prepare`.
    """

    job: ClassVar[str]
    unchanged_status: ClassVar[str | None] = None
    secret: ClassVar[frozenset[str]] = frozenset()
    config: RecordedConfig

    def __init__(self, config: RecordedConfig, screen: Screen, command: str | None = None) -> None:
        """Check the folders the run writes to; start importing for the first stage.

        Args:
            config: of the run.
            screen: where progress is shown.
            command: what was typed, where it was; otherwise the run is repeated from the `CONFIG` it writes.

        Raises:
            ConfigError: the workspace or the output folder cannot be used.
        """
        self.began = time.monotonic()
        if config.output_dir is not None:
            check_free(config.output_dir, "output_dir")
            check_writable(config.output_dir, "output_dir")
        tracking_uri(config.tracking, config.workspace)  # refused before anything is computed
        super().__init__(config, screen)
        self.command = command or ""
        self.unchanged: dict[str, Any] | None = None
        self.services = Services(config.tracking, config.workspace)
        self.runs: dict[str, str] = {}
        self.flow_run_id: str | None = None
        self._folder: RunFolder | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None and self._folder is not None and self._folder.running:
            interrupted = not isinstance(error, Exception)  # Ctrl-C, SIGTERM, Prefect's own signal
            # What ended the run is the error to tell, not that a full disk takes no note of it.
            with suppress(OSError, CurationError):
                self._folder.fail("interrupted" if interrupted else "failed")
                with recording():
                    self.tracker.finish("KILLED" if interrupted else "FAILED")

    @property
    def tracker(self) -> Tracker:
        """MLflow, connected; waits for it the first time."""
        return self.services.tracker

    @property
    def folder(self) -> RunFolder:
        """The folder of the results, known after `prepare`."""
        if self._folder is None:
            raise RuntimeError("prepare was not called")
        return self._folder

    def prepare(self) -> None:
        """Read and check data, model and output folder; find out whether anything changed since the former run.

        Raises:
            InputError: the data, the model, the checkpoint or the index is wrong.
            ConfigError: the output folder holds another run, the registered model is not there, or what `check` finds.
        """
        self.load(lambda uri, folder: self.tracker.resolve(uri, folder))
        self.check()
        config, digest = self.config, digest_of(self.identity())
        path = config.output_dir or config.workspace / "runs" / f"{config.name}-{digest[:8]}"
        self._folder = RunFolder(path, digest, "output_dir")
        self.command = self.command or self._repeated
        former = self._folder.finished(self.code, self.screen.line)
        if former is not None and self.settled(former) and not self._asks_more(self._folder.recorded):
            seconds = round(time.monotonic() - self.began, 1)
            self.unchanged = former | {"checked": {"at": now(), "seconds": seconds}}
            if self.unchanged_status is not None:
                self.unchanged["status"] = self.unchanged_status
            write_json(path / SUMMARY, self.unchanged)
            for stage in self._folder.stages:  # a run that has nothing to do still needs them
                workspace.note_use(config.workspace / stage)
            self._folder.end(self.code, self._folder.results, self._folder.recorded, self._folder.stages)

    @property
    def told_command(self) -> str:
        """The command line that MLflow is given: what was typed may hold options that are secret."""
        return self._repeated if self.secret else self.command

    @property
    def _repeated(self) -> str:
        return shlex.join(["curate", self.job, "--config", str(self.folder.path / CONFIG)])

    @abstractmethod
    def flow(self) -> Callable[[Any, Callable[[], None]], dict[str, Any]]:
        """The Prefect flow: takes the prepared run and what is called once Prefect has started it; gives the summary."""

    def settled(self, summary: Mapping[str, Any]) -> bool:
        """Whether a run that finished with this summary has nothing more to do; always, by default."""
        return True

    def check(self) -> None:
        """Refuse what load has shown to be wrong with the options; nothing by default."""

    def begin(self, flow_run_id: str | None) -> str | None:
        """Take the output folder and open the MLflow run, the one of an interrupted start when there was one.

        Returns:
            The Prefect run of an earlier start of this run that was killed and so looks as if it were still running.

        Raises:
            ConfigError: another process is at work on the same run.
        """
        config, loaded = self.config, self.loaded
        killed = self.folder.take()
        with recording():
            tags = {"curate.command": self.told_command, "curate.run": self.folder.digest}
            run_id = self.tracker.start(config.name, tags, resume=self.folder.mlflow_run_id)
            ids = {"mlflow_run_id": run_id, "flow_run_id": flow_run_id}
            self.folder.begin({"name": config.name, "started": now(), "command": self.command, **ids})
            write_bytes(self.folder.path / CONFIG, config_text(config).encode())
            self.tracker.log(
                params=_flat(config.model_dump(mode="json", exclude={"workspace", "root", "tracking", *self.secret}))
            )
            source = str(config.data.init_args.get("path", config.data.class_path))
            rows = loaded["n_train"] + loaded["n_validation"]
            self.tracker.dataset(config.name, loaded["digest"], source, rows=rows, context="training")
        self.flow_run_id = flow_run_id
        return killed

    def end(self, summary: dict[str, Any], results: Sequence[str], metrics: Mapping[str, Any]) -> None:
        """Write ``summary.json``, put everything into MLflow, and mark the run finished.

        Args:
            summary: the summary; gets what is found when the model is handed over.
            results: names of the other files in the folder that the run consists of.
            metrics: further figures for MLflow, beside those of the summary.
        """
        target = self.folder.path
        write_json(target / SUMMARY, summary)
        names = [*results, SUMMARY]
        with recording():
            figures = {key: value for key, value in summary.items() if isinstance(value, (int, float))}
            seconds = {f"seconds/{stage}": value for stage, value in summary["seconds"].items()}
            self.tracker.log(metrics=figures | seconds | dict(metrics))
            self.tracker.artifacts([target / name for name in names if name not in self.secret])
        home = self.config.workspace / "stages"
        kept = {f"{home.name}/{stage.folder.name}" for stage in self.stages.values() if stage.folder.parent == home}
        with recording(), self.released() as found:
            if found:
                summary.update(found)
                write_json(target / SUMMARY, summary)
                self.tracker.artifacts([target / SUMMARY])
            self.tracker.finish()
            self.folder.end(self.code, names, self._recording(), sorted(kept))

    @contextmanager
    def released(self) -> Iterator[dict[str, Any]]:
        """Hand the model over, all else being on disk; what is done inside marks the run finished.

        Yields:
            What the summary says of it.
        """
        name, trained = self.config.tracking.register_as, self.registers()
        if name is not None and trained is not None:
            self.tracker.register(name, trained, {"curate.run": self.folder.digest})
        yield {}

    def registers(self) -> str | None:
        """The MLflow run of the model that is registered where the configuration asks for it; None: there is none."""
        return None

    def note_training(self, title: str, done: Finished, params: Mapping[str, Any]) -> None:
        """Record a finished training as a child run in MLflow."""
        section = self.config.tracking
        keep = section.log_checkpoints or section.register_as is not None
        with recording():
            self.runs[title] = self.tracker.training(
                title,
                done.digest,
                params=params,
                metrics=done.values.get("metrics", {}),
                history=done.values.get("history", []),
                checkpoint=done.files["checkpoint"] if keep else None,
            )

    def train(
        self,
        title: str,
        data_digest: str,
        decisions: str | None,
        seed: int | None = None,
        chosen: Chosen | None = None,
    ) -> Finished:
        """As every run trains, with a child run in MLflow."""
        done = super().train(title, data_digest, decisions, seed, chosen)
        options = self.config.train.model_dump() | ({} if seed is None else {"seed": seed})
        self.note_training(title, done, {"data": data_digest, **options, **self.loaded["model"]})
        return done

    def identity(self) -> dict[str, Any]:
        """What the run is of: every option that decides its results, and the content of what it reads."""
        where = {"workspace", "root", "output_dir", "tracking"}
        options = self.config.model_dump(mode="json", exclude=where)
        options["model"].update(checkpoint=None, registered=None)
        options["index"]["path"] = None
        return {"config": options, **{key: self.loaded[key] for key in _CONTENTS}}

    def _recording(self) -> dict[str, Any]:
        """Where and how MLflow keeps the run: no part of what it is of."""
        section = self.config.tracking
        return section.model_dump(mode="json") | {"uri": tracking_uri(section, self.config.workspace)}

    def _asks_more(self, recorded: Mapping[str, Any]) -> bool:
        """Whether the configuration asks MLflow for something that the finished run has not given it."""
        return any(asked and asked != recorded.get(key) for key, asked in self._recording().items())


@contextmanager
def recording() -> Iterator[None]:
    """Say of an error inside that recording failed, not the computation.

    Raises:
        StageError: instead of MLflow's own exception.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise StageError("record", f"MLflow: {str(error).strip().splitlines()[0]}") from error


def config_text(config: IndexConfig) -> str:
    """The whole configuration as YAML, defaults written out; of an index that is given, only the options asked for.

    It may be of others than the defaults (`flows.modelling.ModelRun.arguments`).
    """
    asked = config.index.model_fields_set | NOT_KEPT
    left_out = set() if config.index.path is None else set(IndexSection.model_fields) - asked
    tree = config.model_dump(mode="json", exclude={"index": left_out})
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted keys; those by keys that MLflow takes no names of, such as globs, in one."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and all(_MLFLOW_NAME.fullmatch(str(name)) for name in value):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
