"""What every run starts with: read the data, get a model, index the training rows. No Prefect, no MLflow here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows import versions, workspace
from flows.files import code_digest, digest_of
from flows.outputs import check_writable
from flows.runner import Finished, Runner
from flows.schema import HOW_ONLY, NOT_KEPT, IndexConfig
from flows.screen import Screen
from lorif_core.remote import checkout

PURGED = "purged.json"
"""In the workspace: the list of rows that were purged (`curation.unlearning.exclusions`)."""
_SECTIONS = {"name", "root", "data", "model", "train", "index"}
_SECTIONS |= {"signals", "decide", "report"}  # of clean
_SECTIONS |= {"request", "retain", "weights", "unlearn", "verify"}  # of unlearn
_SECTIONS |= {"target", "warmup", "scores", "strategy", "budget", "controls", "exclude_harmful"}  # of select
_SECTIONS |= {"duplicates", "decontaminate"}


@dataclass(frozen=True)
class Chosen:
    """Some training rows to train on, and the model to go on from.

    Attributes:
        rows: Parquet file with ``example_id`` and ``weight``.
        digest: of what is in it.
        watched: digest of the rows that every epoch is measured on.
        steps: optimizer steps of an epoch; None: one pass over the rows.
        start: the model; None: a new one, of the weights that the seed draws.
        states: epochs after which the state of the training is kept, as the file ``epoch-N``.
    """

    rows: Path
    digest: str
    watched: str
    steps: int | None = None
    start: Finished | None = None
    states: tuple[int, ...] = ()

    def inputs(self) -> dict[str, Any]:
        """What the result depends on: its figures are of the rows watched."""
        start = self.start.digest if self.start else None
        return {
            "rows": self.digest,
            "watched": self.watched,
            "steps": self.steps,
            "start": start,
            "states": self.states,
        }

    def arguments(self) -> dict[str, Any]:
        """What the stage gets."""
        start = checkpoint_of(self.start) if self.start else None
        return {"rows": str(self.rows), "steps": self.steps, "start": start, "states": self.states}


class ModelRun:
    """A model and its index, stage by stage. Use it as a context manager: no process is left behind.

    Attributes:
        config: the configuration.
        screen: draws progress.
        code: digest of the code and package versions that compute results.
        runner: runs the stages.
        held: keeps the workspace from being pruned meanwhile (`flows.workspace.hold`).
        stages: those that are finished, by name.
    """

    def __init__(self, config: IndexConfig, screen: Screen) -> None:
        """Check the workspace; start a process that imports what the first stage needs.

        Raises:
            ConfigError: the workspace cannot be written.
        """
        self.config, self.screen = config, screen
        check_writable(config.workspace, "workspace")
        config.workspace.mkdir(parents=True, exist_ok=True)
        self.held = workspace.hold(config.workspace)
        self.code = digest_of({"sources": code_digest(), "versions": versions.deciding()})
        self.runner = Runner(config.workspace, config.root, self.code, screen)
        self.stages: dict[str, Finished] = {}
        self._checkpoint: Path | None = config.model.checkpoint
        self.runner.warm_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runner.__exit__(kind, error, trace)
        self.held.close()

    @property
    def loaded(self) -> dict[str, Any]:
        """What `load` found out about data and model (`flows.stages.prepare.load`)."""
        return self.stages["load"].values

    def load(self, resolve: Callable[[str, Path], Path]) -> None:
        """Read and check the data, the model and what is to be loaded; nothing is computed.

        Args:
            resolve: gives the checkpoint of a registered model (`flows.tracking.Tracker.resolve`).

        Raises:
            InputError: the data, the model, the checkpoint or the index is wrong.
            ConfigError: there is no such registered model.
        """
        config = self.config
        if config.model.registered is not None:
            self._checkpoint = resolve(config.model.registered, config.workspace / "models")
        # What is read may change any time, so this stage is never reused; its inputs only name its folder.
        named = config.model_dump(mode="json", include={"name", "data", "model", "root"})
        self.stages["load"] = self.runner.run("load", named, self.arguments(), keep=False)
        if self.loaded["purged"]:
            self.screen.line(f"{self.loaded['purged']:,} rows of the data were purged before and are left out")
        for path in (self._checkpoint, config.index.path):
            if path is not None:
                workspace.note_use(Path(path))

    def model(self) -> Finished:
        """Train the model, or take the one the configuration names."""
        given = self._given_model()
        if given is None:
            return self.train("train", self.loaded["digest"], None)
        self.screen.begin("train")
        self.screen.end(f"loaded {self._checkpoint}")
        self.stages["train"] = given
        return given

    def train(
        self,
        title: str,
        data_digest: str,
        decisions: str | None,
        seed: int | None = None,
        chosen: Chosen | None = None,
    ) -> Finished:
        """Train on the data, after the edits in the file ``decisions`` if there is one; before and after share a cache.

        Args:
            title: what the screen calls it.
            data_digest: of the rows as they are trained on.
            decisions: path of decisions to apply first.
            seed: another one than the configuration's.
            chosen: train on some of the rows only.
        """
        options = self.config.train.model_dump(mode="json") | ({} if seed is None else {"seed": seed})
        inputs = self._train_inputs(data_digest) | {"train": options}
        if chosen is not None:
            inputs["chosen"] = chosen.inputs()
        some = chosen.arguments() if chosen is not None else None
        arguments = self.arguments(decisions=decisions, train=options, chosen=some)
        done = self.runner.run("train", inputs, arguments, fresh=self._heavy and title != "train", title=title)
        self.stages[title] = done
        return done

    def index(self, model: Finished, title: str = "index") -> Finished:
        """Index the training rows, or take the index the configuration names; ``title`` is what the screen calls it."""
        options = self.config.index
        if options.path is not None:
            self.screen.begin("index")
            self.screen.end(f"loaded {options.path}")
            given = _given("index", self.loaded["index"], "manifest", checkout(options.path) / "manifest.json")
            self.stages[title] = given
            return given
        arguments, inputs = self.arguments(checkpoint=checkpoint_of(model)), self._index_inputs(model)
        self.stages[title] = self.runner.run("index", inputs, arguments, fresh=self._heavy, title=title)
        return self.stages[title]

    def is_indexed(self) -> bool:
        """Whether `model` and `index` would only find what is there."""
        if self.config.index.path is not None:
            return True
        model = self._given_model() or self.runner.find("train", self._train_inputs(self.loaded["digest"]))
        return model is not None and self.runner.find("index", self._index_inputs(model)) is not None

    def run(
        self, stage: str, inputs: dict[str, Any], *, keep: bool = True, title: str | None = None, **extra: Any
    ) -> Finished:
        """Run a stage of this job; ``extra`` are arguments beside the configuration, paths of earlier results mostly."""
        done = self.runner.run(stage, inputs, self.arguments(**extra), keep=keep, title=title)
        self.stages[title or stage] = done
        return done

    def arguments(self, **extra: Any) -> dict[str, Any]:
        """What a stage gets: the sections of the configuration it may need, and ``extra``."""
        arguments = self.config.model_dump(mode="json", include=_SECTIONS)
        arguments["model"]["checkpoint"] = str(self._checkpoint) if self._checkpoint else None
        # What the user asked for, not what is default: an index that is there may be of other options than the defaults.
        arguments["index_asked"] = sorted(self.config.index.model_fields_set - NOT_KEPT)
        arguments["purged"] = str(self.config.workspace / PURGED)
        arguments["data_digest"] = self.loaded["digest"] if "load" in self.stages else None
        return arguments | extra

    @property
    def _heavy(self) -> bool:
        """Whether training leaves something behind in its process: a GPU's memory, or a group of processes."""
        return self.config.train.accelerator != "cpu" or self.config.train.devices > 1

    def _given_model(self) -> Finished | None:
        if self._checkpoint is None:
            return None
        return _given("train", self.loaded["checkpoint"], "checkpoint", self._checkpoint)

    def _train_inputs(self, data_digest: str) -> dict[str, Any]:
        return {
            "data": data_digest,
            "model": self.loaded["model"],
            "init_args": self.config.model.init_args,
            "train": self.config.train.model_dump(mode="json"),
        }

    def _index_inputs(self, model: Finished) -> dict[str, Any]:
        options = self.config.index.model_dump(mode="json", exclude=HOW_ONLY)
        return {"data": self.loaded["digest"], "model": model.digest, "index": options}


def checkpoint_of(model: Finished) -> str:
    """Path of a model's checkpoint."""
    return str(model.files["checkpoint"])


def index_of(index: Finished) -> str:
    """Path of an index."""
    return str(index.files["manifest"].parent)


def _given(stage: str, digest: str, name: str, path: Path) -> Finished:
    """A result that the user brought, in place of a stage's."""
    return Finished(stage, path.parent, digest, {}, {name: path}, 0.0, reused=True)
