"""What the report of one `clean` run shows, as plain frozen data; nothing here knows how it looks.

Axes: N training rows, K classes. A suspicion score: HIGHER = MORE LIKELY MISLABELLED. An attribution score of a
neighbour: POSITIVE = PROPONENT (training on it lowers the loss of the row it stands beside).
Proportions (accuracy, precision, ...) are fractions in [0, 1] and so are their differences; the page prints per cent.
Any number may be None or NaN where it was not measured: the page says so instead of inventing one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypeGuard

import numpy as np

Label = str | int
Decision = Literal["keep", "drop", "relabel", "review"]

LIMITATIONS = (
    "A flag means that a model trained on these very rows disagrees with the label; rare but correct rows are flagged "
    "too, and errors that many similar rows share are not seen, so look at the rows before deciding.",
    "The intervals cover the chance in which rows were drawn, not the choice of model, seed or threshold, and a "
    "validation set that carries wrong labels itself makes every accuracy here look lower than it is.",
)
NEIGHBOUR_NOTE = (
    "Supporters are the training rows that make the model surest of the suggested label, opponents those that speak "
    "most against it; the signed number says how strongly."
)


class Showable(Protocol):
    """How one row is shown; `curation.data.example_data.Payload` is one."""

    @property
    def kind(self) -> str:
        """One of "image", "text", "features": which of the other three is set."""

    @property
    def image(self) -> np.ndarray | None:
        """uint8 [H, W] (grey) or [H, W, 3] (RGB)."""

    @property
    def text(self) -> str | None:
        """The row's text, any length; the page clips it."""

    @property
    def features(self) -> Mapping[str, Any] | None:
        """Feature name -> number or string; the page shows the first ones."""


@dataclass(frozen=True)
class Figure:
    """One number with its interval.

    Attributes:
        name: what it is, in words ("Accuracy before").
        value: the estimate; None = not measured.
        low: lower end of the interval, in the unit of `value`; None = no interval.
        high: upper end.
        unit: "fraction" (printed in per cent), "difference" (of two fractions, printed in signed percentage points),
            "count" (whole number), "number" (three digits), "seconds".
        note: one short remark (how it was computed, out of how many).
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: Literal["fraction", "difference", "count", "number", "seconds"] = "number"
    note: str = ""


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy on the untouched validation rows before and after cleaning.

    Attributes:
        before: Figure, unit "fraction".
        after: Figure, unit "fraction".
        difference: Figure, unit "difference", after minus before with a PAIRED interval.
        n_validation: rows that all three were measured on.
    """

    before: Figure
    after: Figure
    difference: Figure
    n_validation: int


@dataclass(frozen=True)
class Neighbour:
    """One training row that made the model more (or less) sure about the row it stands beside.

    Attributes:
        example_id: its id.
        label: the label it carries.
        score: attribution, positive = supporter, negative = opponent.
        payload: how to show it.
    """

    example_id: Label
    label: Label
    score: float
    payload: Showable


@dataclass(frozen=True)
class ReportRow:
    """One suspicious training row, beside the rows that speak for and against it.

    Attributes:
        example_id: its id.
        label: the label given.
        suggested_label: the label the model would give; None = no suggestion.
        score: suspicion under the default signal, higher = more likely mislabelled.
        decision: what the run did with it.
        reason: why, in words a person understands.
        payload: how to show it.
        supporters: strongest first (largest positive score).
        opponents: strongest first (most negative score).
        true_label: where known; only measures, shown as a verdict on the flag.
    """

    example_id: Label
    label: Label
    suggested_label: Label | None
    score: float
    decision: Decision
    reason: str
    payload: Showable
    supporters: Sequence[Neighbour] = ()
    opponents: Sequence[Neighbour] = ()
    true_label: Label | None = None


@dataclass(frozen=True)
class Distribution:
    """The scores of one signal over all training rows.

    Attributes:
        signal: its name.
        scores: float [N], higher = more likely mislabelled; NaN rows are left out and counted.
        flagged: bool [N], True = decision is not keep.
        threshold: the score from which rows were flagged; None = not cut by this signal.
        wrong: bool [N], True = the label is known to be wrong; None = the truth is not known.
    """

    signal: str
    scores: np.ndarray
    flagged: np.ndarray
    threshold: float | None = None
    wrong: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not describe the same rows."""
        for name, rows in (("flagged", self.flagged), ("wrong", self.wrong)):
            if rows is not None and np.shape(rows) != np.shape(self.scores):
                raise ValueError(
                    f"distribution of {self.signal!r}: expected {name} of shape {np.shape(self.scores)} as scores have, "
                    f"got {np.shape(rows)}"
                )


@dataclass(frozen=True)
class Confusion:
    """Flagged rows by given and suggested label.

    Attributes:
        classes: the K labels, in code order.
        counts: int [K, K], `counts[given, suggested]` = flagged rows with that pair.
        class_sizes: int [K], training rows given each label, flagged or not; None leaves the share out.
    """

    classes: Sequence[Label]
    counts: np.ndarray
    class_sizes: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse a table that is not K by K."""
        k = len(self.classes)
        if np.shape(self.counts) != (k, k):
            raise ValueError(
                f"confusion: expected counts of shape {(k, k)} for {k} classes, got {np.shape(self.counts)}"
            )
        if self.class_sizes is not None and np.shape(self.class_sizes) != (k,):
            raise ValueError(f"confusion: expected {k} class sizes, got shape {np.shape(self.class_sizes)}")


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name and its points.

    Attributes:
        name: "before" or "after" for a training curve.
        x: float [n], ascending.
        y: float [n]; NaN leaves a gap.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        """Refuse points without a partner."""
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r}: expected as many y as x, got {len(self.y)} and {len(self.x)}")


@dataclass(frozen=True)
class Curve:
    """One metric over training, usually a line before and a line after cleaning.

    Attributes:
        metric: what the y axis is, in words ("Validation accuracy").
        series: the lines, at most four; the first is drawn dashed (before), the last solid.
        unit: "fraction" prints the axis in per cent, "number" as it is.
        x_label: what the x axis counts.
    """

    metric: str
    series: Sequence[Series]
    unit: Literal["fraction", "number"] = "number"
    x_label: str = "epoch"


@dataclass(frozen=True)
class SignalSummary:
    """One line of the table of signals.

    Attributes:
        name: column name in scores.parquet.
        description: what it measures, in a few words.
        average_precision: of finding the rows known to be wrong, in [0, 1]; None = the truth is not known.
        low: lower end of its interval.
        high: upper end.
        correlation: Spearman's with the default signal, in [-1, 1]; None or NaN where undefined (constant signal).
        default: this is the signal that decided.
    """

    name: str
    description: str = ""
    average_precision: float | None = None
    low: float | None = None
    high: float | None = None
    correlation: float | None = None
    default: bool = False


@dataclass(frozen=True)
class Reproduction:
    """Everything needed to get the same result again.

    Attributes:
        command: the exact command line.
        config_yaml: the whole resolved config.
        seeds: name -> seed.
        digests: name -> hex digest (data, model, index, ...).
        files: what -> path, in the order to show.
        versions: package -> version.
        seconds: stage -> wall time in seconds, in the order run.
        mlflow_run_id: the parent run; None = tracking was off.
        mlflow_tracking_uri: where that run is kept.
    """

    command: str
    config_yaml: str
    seeds: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    mlflow_tracking_uri: str | None = None


@dataclass(frozen=True)
class CleanReport:
    """The whole page.

    Attributes:
        title: name of the run ("Digits with planted noise").
        created_at: when the run finished, with a time zone.
        data_name: what was cleaned, in words or by path.
        data_digest: hex digest of the example table.
        model_name: class path and size in words.
        n_examples: N, training rows before cleaning.
        classes: the K labels, in code order.
        decisions: decision -> number of training rows; sums to N.
        settings: the config in words, one sentence an item.
        found: headline figures (flagged, estimated label errors, ...).
        reproduction: how to get the same again.
        accuracy: before and after; None = the model was not retrained.
        truth: precision, recall, average precision against the true labels; empty = the truth is not known.
        rows: the most suspicious rows, worst first, about 50 at most.
        distributions: histograms, the default signal first.
        confusion: given and suggested labels of the flagged rows.
        curves: training curves.
        signals: the table of signals.
        confidence: level of every interval on the page.
        neighbour_note: what the scores of supporters and opponents mean; the default holds if the query is the row
            with its suggested label.
        limitations: sentences; the default two are true of every run.
    """

    title: str
    created_at: datetime
    data_name: str
    data_digest: str
    model_name: str
    n_examples: int
    classes: Sequence[Label]
    decisions: Mapping[str, int]
    settings: Sequence[str]
    found: Sequence[Figure]
    reproduction: Reproduction
    accuracy: AccuracyChange | None = None
    truth: Sequence[Figure] = ()
    rows: Sequence[ReportRow] = ()
    distributions: Sequence[Distribution] = ()
    confusion: Confusion | None = None
    curves: Sequence[Curve] = ()
    signals: Sequence[SignalSummary] = ()
    confidence: float = 0.95
    neighbour_note: str = NEIGHBOUR_NOTE
    limitations: Sequence[str] = LIMITATIONS

    @property
    def n_flagged(self) -> int:
        """Training rows whose decision is anything but keep."""
        return sum(count for decision, count in self.decisions.items() if decision != "keep")


def measured(value: float | None) -> TypeGuard[float]:
    """True if `value` is a finite number, so that it can be printed or drawn."""
    return value is not None and math.isfinite(value)
