"""One run of select, step by step, without Prefect: which stage follows which, and what decides that it runs again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.files import copy_atomic
from flows.growth import Pools, State
from flows.modelling import Chosen, checkpoint_of, index_of
from flows.recorded import RecordedRun, config_text
from flows.runner import Finished
from flows.schema import HOW_ONLY
from flows.scorers import Scorer, scorers_of
from flows.select_schema import SelectConfig
from flows.select_summary import summarise

MODEL = "model.ckpt"
SELECTED = "selected"
RESULTS = (
    "selected.parquet",
    "selected_rows.parquet",
    "excluded.parquet",
    "harmful.parquet",
    "scores.parquet",
    "report.html",
)
RANDOM = "random"


class SelectRun(RecordedRun):
    """One run of `curate select`. Use it as a context manager: no process is left behind, MLflow's run is closed."""

    secret = frozenset({"selected_rows.parquet"})  # whole rows of the user's, which MLflow would keep for good
    job = "select"
    unchanged_status = "unchanged"
    config: SelectConfig

    _pools: Pools | None = None
    _state: State | None = None

    def flow(self) -> Callable[[Any, Callable[[], None]], dict[str, Any]]:
        """`flows.select`, whose import takes seconds."""
        from flows.select import select_prepared

        return select_prepared

    def check(self) -> None:
        """Say what is left out of the target; look for what earlier runs over this pool left."""
        config, target = self.config, self.loaded["select"]
        if target["left_out"]:
            self.screen.line(
                f"{target['left_out']:,} rows of target.data are of its split test, or another one: they are no target rows, and "
                "none like them is chosen"
            )
        if copies := target["rows"] - target["choosing"] - target["measuring"]:
            self.screen.line(f"{copies:,} target rows do not measure: they hold what one that chooses does, or nearly")
        if not config.grow or config.index.path is not None:
            return
        alike = {
            "code": self.code,
            "model": self.loaded["model"],
            "init_args": config.model.init_args,
            "checkpoint": self.loaded["checkpoint"],
            "train": config.train.model_dump(mode="json"),
            "index": config.index.model_dump(mode="json", exclude=HOW_ONLY),
            "warmup": config.warmup,
            "epochs": self._epochs,
            "target": self._target,
            **config.model_dump(mode="json", include={"duplicates", "decontaminate"}),
        }
        self._pools = Pools(config.workspace, config.name, alike, self.screen.line)
        self._state = self._pools.find(self.loaded["digest"], self.stages["load"].files["rows"], self.runner)

    def identity(self) -> dict[str, Any]:
        """As of every run, which rows the target has, which are kept for a later test, and what the index was grown from."""
        return super().identity() | {"target": self._target, "evaluation": self._evaluation, "origins": self._origins}

    def exclude(self) -> Finished:
        """Find the rows that must not be chosen."""
        options = self.config.model_dump(
            mode="json", include={"target", "duplicates", "decontaminate", "budget", "warmup"}
        )
        inputs = {
            "data": self.loaded["digest"],
            "targets": [self._target, self._evaluation],
            "seed": self.config.train.seed,
            **options,
        }
        done = self.run("exclude", inputs, rows=str(self.stages["load"].files["rows"]))
        for kind, rows in sorted(done.values["excluded"].items()):
            self.screen.line(f"{rows:,} of {self.loaded['n_train']:,} rows cannot be chosen: {kind}")
        return done

    def warm_up(self, excluded: Finished) -> Finished:
        """The model that scores: the one the configuration names, else one trained on a random slice of the pool."""
        if self._given_model() is not None:
            return self.model()
        if self._state is not None and self._state.model is not None:
            self.screen.begin("train")
            self.screen.end("the model of an earlier state of this pool")
            self.stages["train"] = self._state.model
            return self._state.model
        values = excluded.values
        part = Chosen(excluded.files["slice"], values["slice_digest"], self._target, states=tuple(self._epochs))
        return self.train("train", self.loaded["digest"], None, chosen=part)

    def indexed(self, model: Finished) -> list[Finished]:
        """The index of the pool with each state of the model that scores: built, or grown from that of an earlier pool."""
        scorers, state = scorers_of(model, self._epochs), self._state
        before: Sequence[Finished | None] = state.indexes if state is not None else [None] * len(scorers)
        found = [self._indexed(scorer, base) for scorer, base in zip(scorers, before, strict=True)]
        if self._pools is not None:
            trained = None if self._given_model() is not None else model
            rows = self.stages["load"].files["rows"]
            self._pools.add(self.loaded["digest"], rows, trained, found, self._origins)
        return found

    def _indexed(self, scorer: Scorer, base: Finished | None) -> Finished:
        """The index of one state; ``base``: that of an earlier pool."""
        if base is None:
            return self.index(scorer.model, scorer.title)
        if self._state is not None and self._state.same:
            self.screen.begin(scorer.title)
            self.screen.end("finished before, reused")
            self.stages[scorer.title] = base
            return base
        inputs = {
            "base": base.digest,
            "model": scorer.model.digest,
            "data": self.loaded["digest"],
            "index": self.config.index.model_dump(mode="json", exclude=HOW_ONLY),
        }
        checkpoint = checkpoint_of(scorer.model)
        index = self.run("grow", inputs, title=scorer.title, checkpoint=checkpoint, base=index_of(base))
        self.screen.line(f"{index.values['added']:,} new rows added to the index of now {index.values['rows']:,}")
        return index

    def aggregate(self, model: Finished, indexes: Sequence[Finished], excluded: Finished) -> Finished:
        """Score the pool for the target."""
        inputs = {
            "model": model.digest,
            "indexes": [index.digest for index in indexes],
            "data": self.loaded["digest"],
            "target": self._target,
            "options": self.config.target.model_dump(mode="json"),
            "scores": self.config.scores.model_dump(mode="json"),
            "excluded": excluded.values["excluded_digest"],
            "strategy": self.config.strategy.name,
        }
        checkpoints = self._checkpoints(model, indexes)
        return self.run("aggregate", inputs, checkpoints=checkpoints, excluded=str(excluded.files["excluded"]))

    def choose(self, model: Finished, indexes: Sequence[Finished], excluded: Finished, scores: Finished) -> Finished:
        """Choose, and let the controls choose."""
        config = self.config
        inputs = {
            "scores": scores.digest,
            "excluded": excluded.values["excluded_digest"],
            "table": self.loaded["table"],
            "strategy": config.strategy.model_dump(mode="json"),
            "budget": config.budget.model_dump(mode="json"),
            "controls": config.controls,
            "exclude_harmful": config.exclude_harmful,
            "seeds": self.seeds,
            "shown": config.report.rows,
        }
        return self.run(
            "choose",
            inputs,
            checkpoints=self._checkpoints(model, indexes),
            excluded=str(excluded.files["excluded"]),
            scores_file=str(scores.files["scores"]),
            best=str(scores.files["best"]),
            seeds=self.seeds,
        )

    def fine_tune(self, model: Finished, chosen: Finished) -> dict[str, list[Finished]]:
        """Train on the selection and on what each control chose, all with the same seeds and as many optimizer steps."""
        start = model if self._given_model() is not None else None
        steps = self.config.compare.steps or -(-chosen.values["rows"] // self.loaded["batch_size"])
        done: dict[str, list[Finished]] = {}
        for name in (SELECTED, *self.config.controls) if self.seeds else ():
            for seed in self.seeds:
                title = f"{name}-{seed}" if name == RANDOM else name
                some = Chosen(chosen.files[title], chosen.values["digests"][title], self._target, steps, start)
                label = self.config.strategy.name if name == SELECTED else name
                found = self.train(f"{label}-{seed}", self.loaded["digest"], None, seed, some)
                done.setdefault(label, []).append(found)
        return done

    def report(self, excluded: Finished, chosen: Finished, tuned: dict[str, list[Finished]]) -> dict[str, Any]:
        """Make the page, put all results into the output folder and close the MLflow run; returns the summary."""
        target, results = self.folder.path, list(RESULTS)
        page = self.run(
            "present",
            {"run": self.folder.digest},
            keep=False,
            summary=self._summary(tuned, [*results, MODEL] if tuned else results),
            config_text=config_text(self.config),
            command=self.command,
            histories={name: [one.values["history"] for one in found] for name, found in tuned.items()},
            selected=str(chosen.files[SELECTED]),
            scores_file=str(chosen.files["scores"]),
            shown=str(chosen.files["shown"]),
            excluded=str(excluded.files["excluded"]),
        )
        copy_atomic(chosen.files[SELECTED], target / "selected.parquet")
        copy_atomic(chosen.files["rows"], target / "selected_rows.parquet")
        for name in ("scores", "harmful"):
            copy_atomic(chosen.files[name], target / f"{name}.parquet")
        copy_atomic(excluded.files["excluded"], target / "excluded.parquet")
        copy_atomic(page.files["report"], target / "report.html")
        if tuned:
            results.append(MODEL)
            copy_atomic(tuned[self.config.strategy.name][0].files["checkpoint"], target / MODEL)
        summary = self._summary(tuned, results)
        compared = ("target_accuracy", "target_loss")
        figures = {f"{key}/{name}": one["mean"] for key in compared for name, one in summary[key].items()}
        self.end(summary, results, figures)
        return summary

    def note_training(self, title: str, done: Finished, params: Mapping[str, Any]) -> None:
        """As every run notes one, its figures named by the rows they are of: held-out target rows."""
        values = done.values | {
            "metrics": _held_out(done.values["metrics"]),
            "history": [_held_out(epoch) for epoch in done.values["history"]],
        }
        super().note_training(title, replace(done, values=values), params)

    def registers(self) -> str | None:
        """The model fine-tuned on the selection with the first seed."""
        return self.runs.get(f"{self.config.strategy.name}-{self.seeds[0]}") if self.seeds else None

    @property
    def seeds(self) -> list[int]:
        """Of the fine-tunings, other ones than the warm-up's."""
        first = self.config.train.seed + 1
        return list(range(first, first + self.config.compare.seeds))

    @property
    def _target(self) -> str:
        """Digest of the target: its rows, and which of them choose and which measure."""
        return str(self.loaded["select"]["digest"])

    @property
    def _evaluation(self) -> str:
        """Digest of the rows kept for a later test."""
        return str(self.loaded["select"]["evaluation_digest"])

    @property
    def _epochs(self) -> list[int]:
        """After which the warm-up keeps its state, to score with it."""
        if self._given_model() is not None:
            return []
        return self.config.scores.kept_epochs(self.config.train.max_epochs)

    @property
    def _origins(self) -> list[str | None]:
        """What the index of each state of the model was grown from."""
        return self._state.origins if self._state is not None else [None] * max(1, len(self._epochs))

    def _checkpoints(self, model: Finished, indexes: Sequence[Finished]) -> list[dict[str, Any]]:
        """What stages that score get of the model's states."""
        adam, scorers = self.config.scores.adam, scorers_of(model, self._epochs)
        return [scorer.arguments(index, adam) for scorer, index in zip(scorers, indexes, strict=True)]

    def _summary(self, tuned: dict[str, list[Finished]], results: list[str]) -> dict[str, Any]:
        return summarise(
            self.config,
            self.stages,
            tuned,
            folder=self.folder.path,
            results=results,
            seeds=self.seeds,
            run_ids={"mlflow_run_id": self.tracker.run_id, "prefect_flow_run_id": self.flow_run_id},
            uri=self.tracker.uri,
            total_seconds=time.monotonic() - self.began,
            checkpoints=self._versions(),
            digests={"run": self.folder.digest, "data": self.loaded["digest"], "code": self.code},
        )

    def _versions(self) -> list[dict[str, Any]]:
        """Which states of the model scored, with which indexes, and what those were grown from; the model itself last."""
        scorers = scorers_of(self.stages["train"], self._epochs)
        rows, origins = self.loaded["n_train"], self._origins
        return [one.version(self.stages[one.title], origin, rows) for one, origin in zip(scorers, origins, strict=True)]


def _held_out(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures of what a training takes for its validation rows, under names that say which these are."""
    return {re.sub("^val_", "held_out_", name): value for name, value in figures.items()}
