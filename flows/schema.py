"""The configuration of every job, as pydantic models: the schema of its file, its command line and Prefect's form.

A field's description carries its unit. A file in ``configs/`` only overrides; no default is repeated there.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Section(BaseModel):
    """A part of a configuration: no unknown keys, no number that is not finite, not changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def changed(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are not at their default, given or not: the file a run writes gives all of them."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


def _finite(arguments: dict[str, Any]) -> dict[str, Any]:
    """``arguments`` as they are, when all numbers at any depth are finite: others are no JSON."""
    for key, value in leaves(arguments):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} should be a finite number, got {value}")
    return arguments


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What ``tree`` holds that is neither a mapping nor a list, by dotted key."""
    if isinstance(tree, (dict, list)):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


Arguments = Annotated[dict[str, Any], AfterValidator(_finite)]


class DataSection(Section):
    """Which examples."""

    class_path: str = Field(
        description="The data module: a name of curation.data (Digits, TableData, People, QuestionTable) or "
        "package.module.Class of your own."
    )
    init_args: Arguments = Field(
        default_factory=dict,
        description="Arguments of the data module's constructor (TableData: path, label, id, features, text, image, split and "
        "more, see clean_table.yaml). Here true and false are truth values; yes, no, on and off are text.",
    )


class ModelSection(Section):
    """Which model: built and trained here, or loaded."""

    class_path: str | None = Field(
        default=None,
        description="The model: a name of curation.models or package.module.Class of your own LightningModule; "
        "empty: the shipped one for the kind of data.",
    )
    init_args: Arguments = Field(default_factory=dict, description="Arguments of the model's constructor.")
    checkpoint: Path | None = Field(
        default=None, description="A Lightning checkpoint to load instead of training a model first."
    )
    registered: str | None = Field(
        default=None,
        pattern=r"^models:/[^/@]+(/\d+|@[\w.-]+)$",
        description='A model registered in MLflow to load instead, as "models:/name/1" or "models:/name@alias".',
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.checkpoint is not None and self.registered is not None:
            raise ValueError("checkpoint and registered both name a model to load: keep one of them")
        return self


class TrainSection(Section):
    """How every training of the run is done; the same before and after cleaning."""

    max_epochs: int = Field(default=15, ge=1, description="Passes over the training rows.")
    seed: int = Field(default=0, ge=0, description="Seed of initial weights and row order.")
    accelerator: Literal["cpu", "auto"] = Field(
        default="cpu", description="Where models run; auto takes a GPU when there is one."
    )
    devices: int = Field(default=1, ge=1, description="Number of devices of that kind.")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="Lightning's precision of numbers in training."
    )
    gradient_clip: float | None = Field(
        default=None, gt=0, description="Largest gradient norm; empty: gradients are not clipped."
    )


HOW_ONLY = {"path", "workers", "runner"}
"""Options of the index that do not decide what is in it: workers only share the work."""
NOT_KEPT = HOW_ONLY | {"batch_size", "memory_limit"}
"""Those an index does not tell that it was made with."""


class IndexSection(Section):
    """How LoRIF indexes the training rows."""

    path: str | None = Field(
        default=None,
        description="An index built before, its folder or a URL such as s3://bucket/index, used as it is; it must be of this "
        "model and these data, and made with the options given beside it.",
    )
    projection: Literal["pca", "rademacher", "identity", "whitened", "kfac", "kfac_true"] = Field(
        default="pca",
        description="Two-sided projection of each layer's gradient; rademacher and identity cost no pass over a sample.",
    )
    projection_factor: float = Field(
        default=4, ge=1, description="How many times a layer's input and output sides shrink."
    )
    factor_rank: int = Field(default=1, ge=1, description="Rank kept of a row's gradient in a layer; bytes grow as it.")
    curvature_rank: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Rank of the truncated SVD of the stacked gradients; auto: 256, or all of them where that is cheaper.",
    )
    damping: PositiveFloat | Literal["auto"] = Field(
        default=0.5, description="Damping as a multiple of what damping_rule measures, or auto: chosen for each layer."
    )
    damping_rule: Literal["mean_norm", "trace", "paper", "absolute"] = Field(
        default="mean_norm", description="What damping multiplies: mean_norm is a layer's mean squared gradient norm."
    )
    storage: Literal["factors", "dense"] = Field(
        default="factors", description="What is stored of a row's gradient in a layer: rank-c factors, or all of it."
    )
    bits: Literal[32, 16, 8, 4, 2, 1] = Field(default=16, description="Bits of a stored number.")
    bytes_per_example: int | None = Field(
        default=None,
        ge=1,
        description="Bytes a row may take in the index; projection_factor, factor_rank, storage and bits are then planned.",
    )
    precision: Literal["32", "bf16"] = Field(
        default="32", description="Of the forward and backward pass; bf16 is about twice as fast on a GPU."
    )
    layers: list[str] | None = Field(
        default=None, description="Names or globs of the layers to index; empty: all supported ones."
    )
    strict: bool = Field(default=True, description="Refuse a model with layers that cannot be indexed.")
    seed: int = Field(default=0, ge=0, description="Seed of random projections.")
    batch_size: int = Field(default=128, ge=1, description="Rows in one forward and backward pass.")
    memory_limit: ByteSize = Field(
        default=ByteSize(2**30),
        gt=0,
        description='Bytes, or a text as "500 MB", that sums for projections and curvature may take; less means more passes.',
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Processes that share the index, and the scores of a large one, each on a device of its own; empty: as "
        "many as train.devices.",
    )
    runner: Literal["local", "ray"] = Field(
        default="local",
        description="Where they run: on this machine, or on the Ray cluster that RAY_ADDRESS names (one of this machine's own "
        "where it is not set), all of whose machines must see the workspace under the same path and reach Prefect's server "
        "(PREFECT_API_URL).",
    )

    @model_validator(mode="after")
    def _ray_is_there(self) -> Self:
        if self.runner == "ray" and importlib.util.find_spec("prefect_ray") is None:
            raise ValueError("runner: ray needs the package prefect-ray: pip install 'lorif-curation[ray]'")
        return self

    @model_validator(mode="after")
    def _planned_or_given(self) -> Self:
        planned = ("projection_factor", "factor_rank", "storage", "bits")
        given = self.changed(planned)
        if self.bytes_per_example is not None and given:
            raise ValueError(f"bytes_per_example plans {', '.join(planned)}: leave {' and '.join(given)} out")
        return self


Signal = Literal[
    "kernel_loo",
    "loo_logits",
    "loss",
    "margin",
    "self_influence",
    "proponent_votes",
    "trusted_influence",
    "rank_average",
]


class SignalsSection(Section):
    """What is computed to find wrong labels. In every signal higher means more likely mislabelled."""

    use: Signal = Field(
        default="kernel_loo", description="The column of scores.parquet that decides; kernel_loo is the best measured."
    )
    kernel: Literal["rbf", "linear"] = Field(default="rbf", description="Kernel of kernel leave-one-out.")
    damping: float = Field(
        default=1.0, gt=0, description="Damping of kernel leave-one-out, in mean squared norms of its features."
    )
    landmarks: int = Field(default=256, ge=1, description="Rows that span the rbf kernel.")
    self_influence: bool = Field(default=True, description="Add the self-influence of every row, from the index.")
    proponent_votes: bool = Field(
        default=False,
        description="Add the label votes of every row's strongest proponents; costs one query a training row.",
    )
    trusted_influence: bool = Field(
        default=False,
        description="Add how much a row harms the validation rows, whose labels must then be right; they also measure "
        "the accuracy before and after, so that figure is then no longer independent.",
    )
    rank_average: list[Signal] = Field(
        default_factory=list, description="Add the mean rank over these signals, as a signal of its own."
    )
    neighbours: int = Field(default=10, ge=1, description="Strongest proponents that vote and that a reason counts.")

    @model_validator(mode="after")
    def _what_decides_is_computed(self) -> Self:
        optional = ("self_influence", "proponent_votes", "trusted_influence", "rank_average")
        problems = [
            f"{name} is named, but not computed: set signals.{name}"
            for name in dict.fromkeys((self.use, *self.rank_average))
            if name in optional and not getattr(self, name)
        ]
        if "rank_average" in self.rank_average:
            problems.append("rank_average cannot average itself")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class DecideSection(Section):
    """Which rows are flagged, and what becomes of them. Without budget and threshold: as many as errors are estimated."""

    action: Literal["drop", "relabel", "review"] = Field(
        default="drop",
        description="What becomes of a flagged row: dropped, given the suggested label, or left to a person.",
    )
    budget: int | float | None = Field(
        default=None, gt=0, description="Rows to flag; a number below 1 is a fraction of the training rows."
    )
    threshold: float | None = Field(
        default=None, description="Flag the rows whose score is at least this, in the unit of the signal that decides."
    )
    min_confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Probability of the suggested label below which a flagged row goes to review; empty: 0.5 for relabel, "
        "0 for drop.",
    )
    review_band: float = Field(
        default=0.0, ge=0, description="Rows just below the cut that go to review, as a fraction of the flagged ones."
    )

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        problems = []
        if self.budget is not None and self.threshold is not None:
            problems.append("budget and threshold both say where to cut: keep one of them")
        if self.budget is not None and self.budget > 1 and self.budget != int(self.budget):
            problems.append(f"budget is a number of rows or a fraction below 1, got {self.budget}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ReportSection(Section):
    """What the report page shows."""

    title: str | None = Field(default=None, description="Headline of the page; empty: the name of the run.")
    rows: int = Field(default=40, ge=0, description="Worst rows shown with their supporters and opponents.")
    examples: int = Field(default=5, ge=1, description="Strongest supporters, and opponents, shown beside a row.")


class TrackingSection(Section):
    """What MLflow keeps."""

    uri: str | None = Field(
        default=None, description="MLflow tracking URI; empty: MLFLOW_TRACKING_URI, else a database in the workspace."
    )
    experiment: str = Field(default="clean", min_length=1, description="Name of the MLflow experiment.")
    register_as: str | None = Field(
        default=None,
        min_length=1,
        description="Register the retrained model in MLflow under this name; without retraining, the trained one.",
    )
    log_checkpoints: bool = Field(
        default=True,
        description="Keep the checkpoints as artifacts of the MLflow runs; a model that is registered needs them kept.",
    )


class JobSection(Section):
    """What every job has."""

    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9][\w.-]*$", description="Name of the job; the stem of its file by default."
    )
    workspace: Path = Field(
        default=Path("workspace"),
        description="Folder with everything runs keep; also --workspace and the variable CURATE_WORKSPACE.",
    )
    root: Path = Field(
        default=Path(),
        description="Folder from which relative paths in the file are meant and own classes are imported; "
        "the file's own folder by default.",
    )


class IndexConfig(JobSection):
    """Configuration of `curate index`."""

    data: DataSection
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    index: IndexSection = IndexSection()
    tracking: TrackingSection = TrackingSection()


class RecordedConfig(IndexConfig):
    """Configuration of a run that has a folder of results and a run in MLflow."""

    output_dir: Path | None = Field(
        default=None,
        description="Folder of the results; empty: WORKSPACE/runs/NAME-DIGEST, one for each state of the data.",
    )


class CleanConfig(RecordedConfig):
    """Configuration of `curate clean`, the only parameter of its flow."""

    signals: SignalsSection = SignalsSection()
    decide: DecideSection = DecideSection()
    retrain: bool = Field(default=True, description="Train again on the cleaned rows and compare.")
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _something_to_register(self) -> Self:
        loaded = self.model.checkpoint is not None or self.model.registered is not None
        if self.tracking.register_as is not None and loaded and not self.retrain:
            raise ValueError("tracking.register_as: no model is trained when one is loaded and retrain is false")
        return self
