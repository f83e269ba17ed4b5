"""One run of clean, step by step, without Prefect: which stage follows which, and what decides that it runs again."""

from __future__ import annotations

import datetime
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from curation.errors import CurationError
from flows import workspace
from flows.errors import ConfigError, StageError
from flows.files import copy_atomic, digest_of, write_json
from flows.modelling import ModelRun, checkpoint_of, index_of
from flows.outputs import SUMMARY, RunFolder, check_free, check_writable
from flows.runner import Finished
from flows.schema import CleanConfig
from flows.screen import Screen
from flows.services import Services
from flows.summary import summarise
from flows.tracking import Tracker, tracking_uri
from lorif_core.atomic import write_bytes

CONFIG = "config.yaml"  # the whole configuration, with every default and every folder written out
RESULTS = ("decisions.parquet", "scores.parquet", "cleaned.parquet", "report.html", SUMMARY)

# What load found out that decides the results beside the options.
_CONTENTS = ("digest", "table", "truth", "model", "checkpoint", "index")


class CleanRun(ModelRun):
    """One run of `curate clean`. Use it as a context manager: no process is left behind, MLflow's run is closed.

    Attributes:
        command: the command line that repeats the run, known after `prepare`.
        services: MLflow and Prefect.
        unchanged: the summary of the former run when nothing has changed since, known after `prepare`.
    """

    config: CleanConfig

    def __init__(self, config: CleanConfig, screen: Screen, command: str | None = None) -> None:
        """Check the folders the run writes to; start importing for the first stage.

        Args:
            config: of the run.
            screen: where progress is shown.
            command: what was typed, where it was; otherwise the run is repeated from the `CONFIG` it writes.

        Raises:
            ConfigError: the workspace or the output folder cannot be used.
        """
        self._began = time.monotonic()
        if config.output_dir is not None:
            check_free(config.output_dir, "output_dir")
            check_writable(config.output_dir, "output_dir")
        super().__init__(config, screen)
        self.command = command or ""
        self.unchanged: dict[str, Any] | None = None
        self.services = Services(config.tracking, config.workspace)
        self._runs: dict[str, str] = {}
        self._flow_run_id: str | None = None
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
            raise RuntimeError("CleanRun.prepare was not called")
        return self._folder

    def prepare(self) -> None:
        """Read and check data, model and output folder; find out whether anything changed since the former run.

        Raises:
            InputError: the data, the model, the checkpoint or the index is wrong.
            ConfigError: the output folder holds another run, the registered model is not there, or more rows are to be
                flagged than there are.
        """
        self.load(lambda uri, folder: self.tracker.resolve(uri, folder))
        digest = digest_of(self._identity())
        config = self.config
        check_budget(config.decide.budget, self.loaded["n_train"])
        path = config.output_dir or config.workspace / "runs" / f"{config.name}-{digest[:8]}"
        self._folder = RunFolder(path, digest, "output_dir")
        self.command = self.command or shlex.join(["curate", "clean", "--config", str(path / CONFIG)])
        former = self._folder.finished(self.code, self.screen.line)
        if former is not None and not self._asks_more(self._folder.recorded):
            seconds = round(time.monotonic() - self._began, 1)
            self.unchanged = former | {"status": "unchanged", "checked": {"at": _now(), "seconds": seconds}}
            write_json(path / SUMMARY, self.unchanged)
            for stage in self._folder.stages:  # a run that has nothing to do still needs them
                workspace.note_use(config.workspace / stage)
            self._folder.end(self.code, RESULTS, self._folder.recorded, self._folder.stages)

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
            tags = {"curate.command": self.command, "curate.run": self.folder.digest}
            run_id = self.tracker.start(config.name, tags, resume=self.folder.mlflow_run_id)
            ids = {"mlflow_run_id": run_id, "flow_run_id": flow_run_id}
            self.folder.begin({"name": config.name, "started": _now(), "command": self.command, **ids})
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_bytes(self.folder.path / CONFIG, text.encode())
            self.tracker.log(params=_flat(config.model_dump(mode="json", exclude={"workspace", "root", "tracking"})))
            source = str(config.data.init_args.get("path", config.data.class_path))
            rows = loaded["n_train"] + loaded["n_validation"]
            self.tracker.dataset(config.name, loaded["digest"], source, rows=rows, context="training")
        self._flow_run_id = flow_run_id
        return killed

    def score(self, model: Finished, index: Finished) -> Finished:
        """Compute every signal of every training row."""
        signals = self.config.signals.model_dump(mode="json", exclude={"use"})
        inputs = {"model": model.digest, "index": index.digest, "data": self.loaded["digest"], "signals": signals}
        return self.run("score", inputs, checkpoint=checkpoint_of(model), index_path=index_of(index))

    def decide(self, model: Finished, index: Finished, scores: Finished) -> Finished:
        """Decide what happens to every row, with reasons a person understands."""
        inputs = {
            "scores": scores.digest,
            "index": index.digest,
            "truth": self.loaded["truth"],
            "signals": self.config.signals.model_dump(mode="json"),
            "decide": self.config.decide.model_dump(mode="json"),
            "examples": self.config.report.examples,
        }
        return self.run(
            "decide",
            inputs,
            checkpoint=checkpoint_of(model),
            index_path=index_of(index),
            scores=str(scores.files["scores"]),
            kernel=str(scores.files["kernel"]),
        )

    def apply(self, decisions: Finished) -> Finished:
        """Edit the user's own table."""
        inputs = {"decisions": decisions.digest, "data": self.loaded["digest"], "table": self.loaded["table"]}
        return self.run("apply", inputs, decisions=str(decisions.files["decisions"]))

    def retrain(self, decisions: Finished, cleaned: Finished) -> Finished | None:
        """Train on the edited rows exactly as before; None when the configuration says not to."""
        if not self.config.retrain:
            return None
        return self.train("retrain", cleaned.values["digest"], str(decisions.files["decisions"]))

    def compare(self, model: Finished, after: Finished | None) -> Finished:
        """Measure the model, and the retrained one, on the validation rows."""
        inputs = {
            "data": self.loaded["digest"],
            "before": model.digest,
            "after": after.digest if after else None,
            "seed": self.config.train.seed,
        }
        return self.run(
            "compare",
            inputs,
            checkpoint=checkpoint_of(model),
            checkpoint_after=checkpoint_of(after) if after else None,
        )

    def report(self) -> dict[str, Any]:
        """Make the page, put all results into the output folder and close the MLflow run; returns the summary."""
        done, target = self.stages, self.folder.path
        trained = {name: done[name].values for name in ("train", "retrain") if name in done and done[name].values}
        page = self.run(
            "report",
            {"run": self.folder.digest},
            keep=False,
            summary=self._summary(),
            config_text=config_text(self.config),
            command=self.command,
            histories={name: values["history"] for name, values in trained.items()},
            scores=str(done["score"].files["scores"]),
            decisions=str(done["decide"].files["decisions"]),
            neighbours=str(done["decide"].files["neighbours"]),
        )
        for stage, name in (("score", "scores"), ("decide", "decisions"), ("apply", "cleaned")):
            copy_atomic(done[stage].files[name], target / f"{name}.parquet")
        copy_atomic(page.files["report"], target / "report.html")
        summary = self._summary()
        write_json(target / SUMMARY, summary)
        with recording():
            self._record(summary, [target / name for name in RESULTS])
        home = self.config.workspace / "stages"
        kept = {f"{home.name}/{stage.folder.name}" for stage in done.values() if stage.folder.parent == home}
        self.folder.end(self.code, RESULTS, self._recording(), sorted(kept))
        return summary

    def train(self, title: str, data_digest: str, decisions: str | None) -> Finished:
        """As every run trains, with a child run in MLflow."""
        done = super().train(title, data_digest, decisions)
        config = self.config
        keep = config.tracking.log_checkpoints or config.tracking.register_as is not None
        with recording():
            self._runs[title] = self.tracker.training(
                title,
                done.digest,
                params={"data": data_digest, **config.train.model_dump(), **self.loaded["model"]},
                metrics=done.values["metrics"],
                history=done.values["history"],
                checkpoint=done.files["checkpoint"] if keep else None,
            )
        return done

    def _identity(self) -> dict[str, Any]:
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

    def _summary(self) -> dict[str, Any]:
        return summarise(
            self.config,
            self.stages,
            folder=self.folder.path,
            run_ids={"mlflow_run_id": self.tracker.run_id, "prefect_flow_run_id": self._flow_run_id},
            uri=self.tracker.uri,
            total_seconds=time.monotonic() - self._began,
            digests={"run": self.folder.digest, "data": self.loaded["digest"], "code": self.code},
        )

    def _record(self, summary: dict[str, Any], files: list[Path]) -> None:
        """Put figures, tables and the report into MLflow, register the model when asked to, close the run."""
        figures = {key: value for key, value in summary.items() if isinstance(value, (int, float))}
        seconds = {f"seconds/{stage}": value for stage, value in summary["seconds"].items()}
        precision = {f"average_precision/{name}": value for name, value in summary["signals"].items()}
        self.tracker.log(metrics=figures | seconds | precision)
        self.tracker.artifacts(files)
        name = self.config.tracking.register_as
        trained = self._runs.get("retrain") or self._runs.get("train")
        if name is not None and trained is not None:
            self.tracker.register(name, trained, {"curate.run": self.folder.digest})
        self.tracker.finish()


def check_budget(budget: float | None, rows: int) -> None:
    """Refuse to flag more rows than there are for training.

    Raises:
        ConfigError: more are asked for; only `apply` would notice, after everything is computed.
    """
    if budget is not None and budget > rows:
        raise ConfigError(f"decide.budget: {budget:,.0f} rows are to be flagged, but there are {rows:,} training rows")


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


def config_text(config: CleanConfig) -> str:
    """The whole configuration as YAML, defaults written out."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
