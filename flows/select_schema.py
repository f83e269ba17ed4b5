"""The configuration of `curate select`. Every problem that lies between two fields is told, not only the first."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from flows.schema import Arguments, RecordedConfig, ReportSection, Section

Control = Literal["random", "bm25", "repsim", "loss"]
PLAIN_PROJECTIONS = ("identity", "rademacher", "pca")
"""Projections that do not precondition."""


class TargetDataSection(Section):
    """Target rows from a source of their own."""

    class_path: str | None = Field(
        default=None,
        description="Its data module, of the same kind as the pool's; its rows of the splits train and validation are target rows. "
        "Empty: they are of data.",
    )
    init_args: Arguments = Field(default_factory=dict, description="Arguments of its constructor.")


class TargetWhereSection(Section):
    """Target rows by a column of the data."""

    column: str | None = Field(
        default=None,
        min_length=1,
        description="A column whose value makes a row a target row; empty: all of the split.",
    )
    values: list[str | int] = Field(default_factory=list, description="Its values in target rows.")


class TargetSection(Section):
    """What the model should get better at."""

    data: TargetDataSection = TargetDataSection()
    split: Literal["validation", "train"] = Field(
        default="validation",
        description="Split of data that target rows are of; those of train are taken out of the pool.",
    )
    where: TargetWhereSection = TargetWhereSection()
    examples: int = Field(
        default=50,
        ge=1,
        description="Target rows that choose, drawn by chance; the others measure, but for copies of these (decontaminate.near).",
    )
    group_by: str | None = Field(
        default=None,
        min_length=1,
        description="Column whose values make target groups, which are served alike; example_id: each row one. Empty: one group.",
    )
    seed: int = Field(default=0, ge=0, description="Of which target rows choose.")

    def problems(self) -> list[str]:
        """What does not go together."""
        where = self.where
        found = []
        if (where.column is None) != (not where.values):
            found.append("target.where: column and values go together")
        if self.data.class_path is not None and self.split == "train":
            found.append("target.split: names rows of data, but target.data brings target rows of its own")
        if self.data.class_path is None and self.data.init_args:
            found.append("target.data: init_args without a class_path")
        if self.split == "train" and where.column is None:
            found.append("target.where: with target.split: train, name the rows that are no part of the pool")
        return found


class ScoresSection(Section):
    """How the pool's rows are scored for the target: by LoRIF, positive = helps."""

    how: Literal["mean", "max", "round_robin"] = Field(
        default="mean",
        description="A row's score over the target groups; round_robin: by the turn at which it is taken where they take turns.",
    )
    normalise: bool = Field(
        default=False,
        description="Scale gradients to length one: long rows, and rows of large gradients, count no more.",
    )
    adam: bool = Field(
        default=False,
        description="Divide the target's gradients, weight by weight, by what Adam divides its steps by, in place of the curvature "
        "(LESS); a model that is loaded must be a checkpoint with the state of its Adam.",
    )
    checkpoints: int = Field(
        default=1,
        ge=1,
        description="States of the warm-up that score, after evenly spaced epochs, each with an index of its own; a row's score is "
        "the sum, each times the mean learning rate that led to it.",
    )
    layer_weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict,
        description="Factors of layers' parts of every score, by name or glob of the layer; of several that fit the last, 1 where "
        "none does.",
    )

    def problems(self, config: SelectConfig) -> list[str]:
        """What does not go with the rest of the configuration."""
        found = []
        loaded = next((name for name in ("checkpoint", "registered") if getattr(config.model, name) is not None), None)
        epochs, projection = config.train.max_epochs, config.index.projection
        if self.checkpoints > 1 and loaded is not None:
            found.append(
                f"scores.checkpoints: {self.checkpoints} states of a warm-up are to score, but model.{loaded} loads one model: "
                "leave one of them out"
            )
        elif self.checkpoints > epochs:
            found.append(
                f"scores.checkpoints: {self.checkpoints} states are to be kept, at most one an epoch, but train.max_epochs is "
                f"{epochs}"
            )
        if self.adam and projection not in PLAIN_PROJECTIONS:
            found.append(
                f"scores.adam: takes the place of what an index with projection {projection} has done already: set "
                f"index.projection to {' or '.join(PLAIN_PROJECTIONS)}"
            )
        return found

    def kept_epochs(self, epochs: int) -> list[int]:
        """The epochs, from 1, after which a warm-up of ``epochs`` keeps its state, the last one last; none need be kept: []."""
        if self.checkpoints == 1 and not self.adam:
            return []
        return [-(-epochs * number // self.checkpoints) for number in range(1, self.checkpoints + 1)]


class StrategySection(Section):
    """How rows are chosen by their scores."""

    name: Literal["top_k", "round_robin", "facility_location", "density", "quotas", "importance"] = Field(
        default="top_k", description="The strategy."
    )
    options: Arguments = Field(default_factory=dict, description="Of the strategy.")
    seed: int = Field(default=0, ge=0, description="Of what it draws.")


class BudgetSection(Section):
    """How much is chosen: one of the three."""

    rows: PositiveInt | None = Field(default=None, description="Rows.")
    tokens: PositiveInt | None = Field(
        default=None, description="Tokens of all chosen rows; words where there is no tokenizer."
    )
    share: float | None = Field(default=None, gt=0, le=1, description="Fraction of the pool's rows.")


class SameSection(Section):
    """Which rows count as the same."""

    near: float | None = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Least Jaccard similarity of two texts' word shingles, estimated by MinHash; empty: only equal rows.",
    )


class DuplicatesSection(SameSection):
    """Rows of the pool that are there several times: the first stays."""

    remove: bool = Field(default=True, description="Whether they go.")


class DecontaminateSection(SameSection):
    """Rows of the pool that are target rows: they go, whether they choose or measure."""


class CompareSection(Section):
    """How it is shown that the selection is better than the controls."""

    seeds: int = Field(
        default=3, ge=0, description="Fine-tunings of the selection and of each control; 0: nothing is fine-tuned."
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Optimizer steps of an epoch, of which there are train.max_epochs, the same for all; empty: one pass over "
        "the selection.",
    )


class SelectReportSection(ReportSection):
    """What the report page shows."""

    rows: int = Field(
        default=10, ge=0, description="Rows shown from the top of the scores, and as many from the bottom."
    )
    examples: int = Field(default=4, ge=1, description="Target rows shown beside each.")


class SelectConfig(RecordedConfig):
    """Configuration of `curate select`, the only parameter of its flow. The pool is the training rows of data."""

    budget: BudgetSection
    target: TargetSection = TargetSection()
    warmup: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Fraction of the pool, drawn by chance, that the model is trained on before it is indexed, where none is "
        "loaded; less for a large pool.",
    )
    grow: bool = Field(
        default=True,
        description="Where an earlier run indexed a part of these rows, keep its model and add the new rows to its index.",
    )
    scores: ScoresSection = ScoresSection()
    strategy: StrategySection = StrategySection()
    duplicates: DuplicatesSection = DuplicatesSection()
    decontaminate: DecontaminateSection = DecontaminateSection()
    exclude_harmful: bool = Field(
        default=False, description="Choose no row that raises the mean loss of the target, whatever the strategy."
    )
    controls: list[Control] = Field(
        default=["random", "repsim", "loss"], description="What the selection is compared with; bm25 is for texts."
    )
    compare: CompareSection = CompareSection()
    report: SelectReportSection = SelectReportSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = self.target.problems() + self.scores.problems(self)
        given = [name for name, value in self.budget.model_dump().items() if value is not None]
        if len(given) != 1:
            problems.append(f"budget: expected one of rows, tokens and share; got {' and '.join(given) or 'none'}")
        if len(set(self.controls)) < len(self.controls):
            problems.append("controls: one is named twice")
        if self.tracking.register_as is not None and not self.compare.seeds:
            problems.append("tracking.register_as: nothing is fine-tuned with compare.seeds: 0")
        if problems:
            raise ValueError("\n".join(problems))
        return self
