"""The configuration of `curate unlearn`. Every problem that lies between two fields is told, not only the first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from flows.schema import Arguments, RecordedConfig, Section, TrackingSection
from flows.urls import has_password


class WhereSection(Section):
    """The rows whose value in a column is one of some."""

    column: str | None = Field(
        default=None, min_length=1, description="A column of the data; empty: rows are named otherwise."
    )
    values: list[str | int] = Field(default_factory=list, description="Its values in the rows that are meant.")


class DuplicatesSection(Section):
    """Which rows count as the same record as a requested one, and go with it."""

    text: float | None = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Least cosine of the character 3- to 5-grams (tf-idf) of two rows' text; of rows that are no text, the same "
        "inputs number for number; empty: not looked at.",
    )
    attribution: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Least cosine of two rows' gradients in the index; empty: not looked at.",
    )


class RequestSection(Section):
    """Which records are to be removed: one of ids, ids_file, where and ledger."""

    ids: list[str | int] = Field(default_factory=list, description="Ids of the records.")
    ids_file: Path | None = Field(default=None, description="Text file of such ids, one a line.")
    where: WhereSection = WhereSection()
    ledger: bool = Field(
        default=False,
        description="Answer the requests that wait in the ledger (`curate requests submit`), as one batch.",
    )
    ledger_url: str | None = Field(default=None, description="The ledger's URL; empty: ledger.db in the workspace.")
    dataset: str = Field(default="default", min_length=1, description="Name of the data in the ledger.")
    reason: str = Field(default="", description="Why; stands in the summary, so name no record in it.")
    near_duplicates: DuplicatesSection = DuplicatesSection()


class RetainSection(Section):
    """Training rows that must stay, by ids or where: what weights, steps and checks go by. Empty: all that are not removed."""

    ids: list[str | int] = Field(default_factory=list, description="Ids of rows that weights, steps and checks go by.")
    where: WhereSection = WhereSection()

    def problems(self) -> list[str]:
        """What does not go together."""
        found = []
        if (self.where.column is None) != (not self.where.values):
            found.append("retain.where: column and values go together")
        if self.ids and self.where.column is not None:
            found.append("retain: expected ids or where, got both")
        return found


class WeightsSection(Section):
    """How hard each record is pushed out of the model."""

    method: Literal["guard", "guard-dynamic", "uniform", "random"] = Field(
        default="guard-dynamic",
        description="guard spares records that share their gradient with what stays, under the model as it was; guard-dynamic "
        "weighs them anew while it unlearns; random is as uneven as guard, without its reason.",
    )
    temperature: float = Field(
        default=2.0, ge=1, description="Of the weights, in standard deviations of the alignments; higher = more even."
    )
    score: Literal["dot", "cosine"] | None = Field(
        default=None,
        description="Alignment with what stays: the product of the gradients, or its cosine; empty: the cosine for guard-dynamic "
        "where the way has it, else the product.",
    )
    way: Literal["auto", "factors", "activations", "two_forwards", "forward_mode"] = Field(
        default="auto",
        description="How alignments are found: from the index, or by passes over the model; auto: from the index where the "
        "run has one and the method is guard, else from the gradients of activations, or by two forward passes where a "
        "layer's gradient is not known.",
    )
    refresh_every: int | None = Field(
        default=None, ge=1, description="Optimizer steps between two weighings of guard-dynamic; empty: 5."
    )

    def problems(self) -> list[str]:
        """What does not go together."""
        dynamic, found = self.method == "guard-dynamic", []
        if self.refresh_every is not None and not dynamic:
            found.append(f"weights.refresh_every: only guard-dynamic weighs again, the method is {self.method}")
        if dynamic and self.way == "factors":
            found.append(
                "weights.way: an index is of the model as it was: guard-dynamic needs passes over the model; "
                "set weights.way to auto, or weights.method to guard"
            )
        if self.score == "cosine" and self.way in ("two_forwards", "forward_mode"):
            found.append(
                f"weights.score, weights.way: cosine needs each record's own gradient, which {self.way} has not: set score to dot, "
                "or way to auto, activations or factors"
            )
        return found


class UnlearnSection(Section):
    """How the records are unlearned."""

    objective: Literal[
        "ascent", "bounded_ascent", "difference", "npo", "simnpo", "dpo", "idk", "rmu", "oracle_matching", "newton"
    ] = Field(
        default="npo",
        description="The loss of a step; oracle_matching: towards a training without the records, which it makes first "
        "(oracle_epochs: half of a retraining, or as much as one); newton: no steps, but one Newton step of a classifier's last "
        "layer away from them.",
    )
    options: Arguments = Field(
        default_factory=dict,
        description="Of the objective: beta, alpha, retain (none, nll, kl), bound, delta, ...; of newton: l2, steps.",
    )
    lr: PositiveFloat = Field(default=5e-4, description="Learning rate of AdamW.")
    max_epochs: int = Field(default=20, ge=1, description="Passes over the records.")
    batch_size: int = Field(default=16, ge=1, description="Records in a step, beside rows that stay.")
    seed: int = Field(default=0, ge=0, description="Of the order of rows, and of random weights.")
    retain_rows: int | None = Field(
        default=None, ge=1, description="Rows that stay a step chooses among, evenly spaced; empty: all."
    )
    retain_per_record: int = Field(default=1, ge=1, description="Rows that stay in a step, for each record in it.")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Of the learning rate; cosine brings it to zero."
    )
    kept: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the weights to start with, the rest is fresh: less than 1 leaves less that learning some of the "
        "records again would bring back.",
    )
    oracle_epochs: int | None = Field(
        default=None, ge=1, description="Passes of oracle_matching's training; empty: half of train.max_epochs."
    )
    alternative: str = Field(
        default="I don't know.",
        min_length=1,
        description="The other answer that dpo and idk teach in place of the records'.",
    )

    def problems(self, weights: WeightsSection) -> list[str]:
        """What a Newton step has no use for."""
        if self.objective != "newton":
            return []
        idle = ("lr", "max_epochs", "retain_rows", "alternative", "schedule", "kept", "retain_per_record")
        given = [f"unlearn.{name}" for name in self.changed(idle)]
        found = [f"{', '.join(given)}: newton is one step over all rows that stay; leave them out"] * bool(given)
        if weights.method != "uniform":
            found.append(
                f"weights.method: newton takes every record out whole, none can be spared: set it to uniform, got {weights.method}"
            )
        return found


class VerifySection(Section):
    """What must hold before a model is published; declared before the run."""

    seeds: int = Field(
        default=3,
        ge=0,
        description="Models trained without the records, to compare with: at least 2. With 0 none is trained and nothing can be "
        "shown: every record is UNTESTABLE, the run ends verify_failed with evidence of tier E3 (E4 without held-out rows), and "
        "nothing is published, purged or registered (a purge that was begun before is finished); for that, set at least 2.",
    )
    tolerance: float = Field(
        default=6.0,
        gt=0,
        description="Largest gap of a record's loss to theirs that counts as none, in standard deviations between seeds.",
    )
    retain_drop: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="How far the share of rows that stay which are answered exactly, and the mean probability of their "
        "answers, may lie below theirs.",
    )
    retain_rows: int = Field(default=64, ge=1, description="Rows that stay that are measured, evenly spaced.")
    batch_size: int = Field(default=32, ge=1, description="Rows of one forward pass.")
    quantise: list[Literal[8, 4]] = Field(default=[8, 4], description="Bits of the quantised probes.")
    relearn_steps: int = Field(default=5, ge=0, description="Steps of the relearning probe; 0: none.")
    relearn_lr: PositiveFloat = Field(default=1e-3, description="Its learning rate.")

    def problems(self) -> list[str]:
        """What could show nothing, though it costs a training."""
        if self.seeds != 1:
            return []
        return [
            "verify.seeds: one model does not tell how far two trained without the records lie apart, which gaps are measured in; "
            "expected at least 2, or 0 for none, got 1"
        ]


class EvidenceSection(Section):
    """What a third party can check."""

    key: Path | None = Field(
        default=None, description="Private ed25519 key (PEM) that signs the evidence; empty: unsigned."
    )


class ApprovalSection(Section):
    """A person's approval of the records that go, between weighing and unlearning."""

    required: bool = Field(default=False, description="Wait for `curate approve` before the model is changed.")
    expires_after: PositiveFloat | None = Field(
        default=None,
        description="Hours after which a question without an answer, or an approval not acted on, is void; empty: never.",
    )


class PublishSection(Section):
    """How a model that is registered (tracking.register_as) becomes the one in use."""

    alias: str | None = Field(
        default="champion",
        pattern=r"^[A-Za-z_][\w-]*$",
        description="Alias in MLflow's registry that moves to the new model last of all, if it is registered "
        "(tracking.register_as); empty: none moves.",
    )


class UnlearnTrackingSection(TrackingSection):
    """What MLflow keeps."""

    experiment: str = Field(default="unlearn", min_length=1, description="Name of the MLflow experiment.")
    register_as: str | None = Field(
        default=None,
        min_length=1,
        description="Register the model that passed the checks in MLflow under this name; empty: it is registered nowhere.",
    )


class UnlearnConfig(RecordedConfig):
    """Configuration of `curate unlearn`, the only parameter of its flow."""

    request: RequestSection
    retain: RetainSection = RetainSection()
    weights: WeightsSection = WeightsSection()
    unlearn: UnlearnSection = UnlearnSection()
    verify: VerifySection = VerifySection()
    tracking: UnlearnTrackingSection = UnlearnTrackingSection()
    dry_run: bool = Field(default=False, description="Say which records would go and how they weigh; change nothing.")
    fallback: Literal["none", "retrain"] = Field(
        default="none",
        description="What follows when the checks fail: nothing is published, or a model trained without the records is.",
    )
    purge: bool = Field(
        default=False,
        description="Before the model is published, remove what is left of the records from an index at index.path and from "
        "everything in the workspace; later jobs there leave them out of the data. Only with request.ledger.",
    )
    evidence: EvidenceSection = EvidenceSection()
    approval: ApprovalSection = ApprovalSection()
    publish: PublishSection = PublishSection()

    @property
    def indexes(self) -> bool:
        """Whether something in the run is read from an index."""
        given = self.index.path is not None or self.request.near_duplicates.attribution is not None
        return given or (self.weights.method == "guard" and self.weights.way == "factors")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [
            *_request_problems(self.request),
            *self.retain.problems(),
            *self.weights.problems(),
            *self.unlearn.problems(self.weights),
            *self.verify.problems(),
        ]
        if self.fallback == "retrain" and self.verify.seeds < 3:
            problems.append(
                f"fallback, verify.seeds: of {self.verify.seeds} models one would be published and fewer than two be left "
                "to compare it with; expected seeds of at least 3"
            )
        if self.purge and not self.request.ledger:
            problems.append(
                "purge: this configuration, and what Prefect keeps of it, would go on naming the records: submit them with "
                "`curate requests submit` and set request.ledger to true"
            )
        if self.approval.expires_after is not None and not self.approval.required:
            problems.append("approval.expires_after: no approval is asked for: set approval.required to true")
        if self.publish.alias is not None and re.fullmatch(r"latest|v\d+", self.publish.alias.lower()):
            problems.append(f"publish.alias: MLflow keeps latest, v1, v2, ... for itself, got {self.publish.alias}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _request_problems(request: RequestSection) -> list[str]:
    """Why it does not say, in one way, which records are meant."""
    where = request.where
    given: dict[str, Any] = {
        "ids": request.ids,
        "ids_file": request.ids_file,
        "where": where.column,
        "ledger": request.ledger,
    }
    named, problems = [name for name, value in given.items() if value], []
    if len(named) != 1:
        problems.append(f"request: expected one of {', '.join(given)}; got {' and '.join(named) or 'none'}")
    if (where.column is None) != (not where.values):
        problems.append("request.where: column and values go together")
    if request.ledger_url is not None and not request.ledger:
        problems.append("request.ledger_url: names a ledger that request.ledger does not ask for")
    if request.ledger_url is not None and has_password(request.ledger_url):
        problems.append(
            "request.ledger_url: it holds a password, which config.yaml, the files of the stages and Prefect would keep: leave it "
            "out and give it to the database's driver (PGPASSWORD or ~/.pgpass)"
        )
    return problems
