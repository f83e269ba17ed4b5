"""One run of clean, step by step, without Prefect: which stage follows which, and what decides that it runs again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flows.errors import ConfigError
from flows.files import copy_atomic
from flows.modelling import checkpoint_of, index_of
from flows.recorded import RecordedRun, config_text
from flows.runner import Finished
from flows.schema import CleanConfig
from flows.summary import summarise

RESULTS = ("decisions.parquet", "scores.parquet", "cleaned.parquet", "report.html")


class CleanRun(RecordedRun):
    """One run of `curate clean`. Use it as a context manager: no process is left behind, MLflow's run is closed."""

    job = "clean"
    unchanged_status = "unchanged"
    config: CleanConfig

    def flow(self) -> Callable[[Any, Callable[[], None]], dict[str, Any]]:
        """`flows.clean`, whose import takes seconds."""
        from flows.clean import clean_prepared

        return clean_prepared

    def check(self) -> None:
        """Refuse to flag more rows than there are.

        Raises:
            ConfigError: more rows are to be flagged than there are.
        """
        check_budget(self.config.decide.budget, self.loaded["n_train"])

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
        precision = {f"average_precision/{name}": value for name, value in summary["signals"].items()}
        self.end(summary, RESULTS, precision)
        return summary

    def registers(self) -> str | None:
        """The retrained model; without retraining, the trained one."""
        return self.runs.get("retrain") or self.runs.get("train")

    def _summary(self) -> dict[str, Any]:
        return summarise(
            self.config,
            self.stages,
            folder=self.folder.path,
            run_ids={"mlflow_run_id": self.tracker.run_id, "prefect_flow_run_id": self.flow_run_id},
            uri=self.tracker.uri,
            total_seconds=time.monotonic() - self.began,
            digests={"run": self.folder.digest, "data": self.loaded["digest"], "code": self.code},
        )


def check_budget(budget: float | None, rows: int) -> None:
    """Refuse to flag more rows than there are for training.

    Raises:
        ConfigError: more are asked for; only `apply` would notice, after everything is computed.
    """
    if budget is not None and budget > rows:
        raise ConfigError(f"decide.budget: {budget:,.0f} rows are to be flagged, but there are {rows:,} training rows")
