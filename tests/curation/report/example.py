"""A whole report on scikit-learn's digits from simple arithmetic: realistic to look at, no model needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from curation.report.model import (
    AccuracyChange,
    CleanReport,
    Confusion,
    Curve,
    Distribution,
    Figure,
    Neighbour,
    ReportRow,
    Reproduction,
    Series,
    SignalSummary,
)

CONFIG = """\
data:
  class_path: curation.data.Digits
  init_args:
    noise: {kind: pairwise, rate: 0.08, seed: 0}
model:
  class_path: curation.models.ImageClassifier
  init_args: {arch: cnn}
training:
  max_epochs: 30
  seed: 0
"""


@dataclass(frozen=True)
class Shown:
    """How a row is shown, as the data modules hand it out."""

    kind: str
    image: np.ndarray | None = None
    text: str | None = None
    features: dict[str, Any] | None = None


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion."""
    middle, half = hits + 1.92, 1.96 * np.sqrt(hits * (n - hits) / n + 0.96)
    return float((middle - half) / (n + 3.84)), float((middle + half) / (n + 3.84))


@cache
def image_report(n_rows: int = 50, n_near: int = 5, side: int = 8) -> CleanReport:
    """Digits with one label in twelve moved to the next class, scored by the labels of their nearest rows."""
    rng = np.random.default_rng(0)
    images, truth = load_digits(return_X_y=True)
    images, truth = images[:1200], truth[:1200]
    labels = truth.copy()
    planted = rng.permutation(1200)[:96]
    labels[planted] = (labels[planted] + 1) % 10
    similar = images @ images.T / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(images, axis=1)
    np.fill_diagonal(similar, -1.0)
    votes = np.zeros((1200, 10))
    for near in np.argsort(-similar, axis=1)[:, :15].T:
        votes[np.arange(1200), labels[near]] += similar[np.arange(1200), near] / 15
    own = votes[np.arange(1200), labels]
    others = votes.copy()
    others[np.arange(1200), labels] = -np.inf
    suggested, scores = others.argmax(1), others.max(1) - own + 0.02 * rng.standard_normal(1200)
    flagged = scores >= 0.4
    worst = np.argsort(-scores)[:n_rows]
    grey = (images * 15.9).astype(np.uint8).reshape(-1, 8, 8)

    def shown(row: int) -> Shown:
        return Shown("image", np.asarray(Image.fromarray(grey[row]).resize((side, side), Image.Resampling.BICUBIC)))

    def near(row: int, sign: int) -> list[Neighbour]:
        toward = similar[row] * np.where(labels == suggested[row], 1.0, np.where(labels == labels[row], -0.9, 0.1))
        return [
            Neighbour(f"digit-{i:04d}", int(labels[i]), float(toward[i]), shown(i))
            for i in np.argsort(-sign * toward)[:n_near]
        ]

    rows = []
    for position, row in enumerate(worst):
        supporters = near(row, 1)
        agree = sum(other.label == suggested[row] for other in supporters)
        decision = "drop" if position < n_rows * 0.8 else "review"
        rows.append(
            ReportRow(
                f"digit-{row:04d}",
                int(labels[row]),
                int(suggested[row]),
                float(scores[row]),
                decision,
                f"labelled {labels[row]}, the model without this row says {suggested[row]} at 0.97; "
                f"{agree} of the {n_near} strongest supporters of {suggested[row]} are labelled {suggested[row]}",
                shown(row),
                supporters,
                near(row, -1),
                int(truth[row]),
            )
        )
    pairs = np.zeros((10, 10), np.int64)
    np.add.at(pairs, (labels[flagged], suggested[flagged]), 1)
    wrong, n_flagged, hits = labels != truth, int(flagged.sum()), int((flagged & (labels != truth)).sum())
    epochs = list(range(1, 31))
    return CleanReport(
        title="Digits with planted noise",
        created_at=datetime(2026, 11, 22, 10, 31, tzinfo=UTC),
        data_name="scikit-learn digits, 8% of the training labels moved by pairwise noise (seed 0)",
        data_digest="3fa1c09be2d845c7a1e03b5f9c02d7716f4ac07a3b1de95c80ff2ad4417c6e21",
        model_name="curation.models.ImageClassifier, arch cnn, 24,330 parameters",
        n_examples=1200,
        classes=list(range(10)),
        decisions={"keep": 1200 - n_flagged, "drop": n_flagged - 12, "review": 12},
        settings=[
            "One model was trained on all rows for 30 epochs (seed 0).",
            "Rows were ranked by the kernel leave-one-out score on the inputs of its last layer (damping 0.1).",
            f"As many rows were flagged as leave-one-out probabilities estimate label errors: {n_flagged}.",
            "Flagged rows were dropped, those near the threshold left for review, and the model trained anew.",
        ],
        found=[
            Figure("Flagged rows", n_flagged, unit="count", note="every decision but keep"),
            Figure("Estimated label errors", 101, 88, 117, "count", "from calibrated leave-one-out probabilities"),
        ],
        truth=[
            Figure(
                "Precision of the flags",
                hits / n_flagged,
                *wilson(hits, n_flagged),
                "fraction",
                f"{hits} of {n_flagged} flagged",
            ),
            Figure("Recall of the flags", hits / 96, *wilson(hits, 96), "fraction", f"{hits} of 96 wrong labels"),
            Figure("Average precision", 0.972, 0.951, 0.989, "fraction", "of the ranking, bootstrapped over rows"),
        ],
        accuracy=AccuracyChange(
            Figure("Before", 0.931, 0.900, 0.953, "fraction"),
            Figure("After", 0.964, 0.939, 0.979, "fraction"),
            Figure("After minus before", 0.0333, 0.0139, 0.0556, "difference", "paired, bootstrapped over rows"),
            360,
        ),
        rows=rows,
        distributions=[Distribution("kernel_loo", scores, flagged, 0.4, wrong)],
        confusion=Confusion(list(range(10)), pairs, np.bincount(labels, minlength=10)),
        curves=[
            Curve(
                "Validation accuracy",
                [
                    Series("before", epochs, [0.93 - 0.6 * np.exp(-e / 4) for e in epochs]),
                    Series("after", epochs, [0.964 - 0.6 * np.exp(-e / 4) for e in epochs]),
                ],
                "fraction",
            ),
            Curve(
                "Training loss",
                [
                    Series("before", epochs, [0.34 + 1.9 * np.exp(-e / 5) for e in epochs]),
                    Series("after", epochs, [0.05 + 2.1 * np.exp(-e / 5) for e in epochs]),
                ],
            ),
        ],
        signals=[
            SignalSummary(
                "kernel_loo", "leave-one-out score of a kernel on the last layer", 0.972, 0.951, 0.989, 1.0, True
            ),
            SignalSummary("loo_logits", "leave-one-out logits, one Newton step", 0.951, 0.921, 0.973, 0.94),
            SignalSummary("self_influence", "influence of a row on its own loss", 0.812, 0.751, 0.864, 0.61),
            SignalSummary("loss", "cross entropy of the given label", 0.884, 0.832, 0.921, 0.87),
            SignalSummary("margin", "best other logit minus the given one", 0.931, 0.894, 0.957, 0.91),
            SignalSummary("constant", "same for every row", 0.08, 0.065, 0.097, float("nan")),
        ],
        reproduction=Reproduction(
            command="curate clean --config configs/clean_digits.yaml --output-dir runs/digits",
            config_yaml=CONFIG,
            seeds={"training": 0, "noise": 0, "index": 0},
            digests={
                "data": "3fa1c09be2d845c7a1e03b5f9c02d7716f4ac07a3b1de95c80ff2ad4417c6e21",
                "checkpoint": "9c02d7716f4ac07a" * 4,
            },
            files={"decisions": "runs/digits/decisions.parquet", "cleaned data": "runs/digits/cleaned.parquet"},
            versions={"lorif-curation": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
            seconds={"train": 11.42, "index": 4.1, "score": 0.8, "retrain": 10.97},
            mlflow_run_id="0f6c3e0e6f6a4d0d9d0a1b6c5d3e2f10",
            mlflow_tracking_uri="sqlite:///workspace/mlflow.db",
        ),
    )


TOPICS = {
    "billing": "I was charged twice for the same month and would like the second payment refunded to my card",
    "delivery": "The parcel was meant to arrive on Tuesday, tracking has not moved since it left the depot in Leeds",
    "returns": "How do I send the shoes back, the label that came in the box cannot be read by the machine",
}


def text_report(n_rows: int = 8) -> CleanReport:
    """The same page with texts and string labels."""
    base = image_report(1)
    names = list(TOPICS)
    rows = []
    for position in range(n_rows):
        given, suggested = names[position % 3], names[(position + 1) % 3]
        near = [
            Neighbour(f"ticket-{i}", name, sign * (0.9 - 0.2 * i), Shown("text", text=f"{TOPICS[name]}, order {i}."))
            for i, (name, sign) in enumerate([(suggested, 1), (suggested, 1), (names[(position + 2) % 3], 1)])
        ]
        against = [replace(other, score=-other.score, label=given) for other in near]
        rows.append(
            ReportRow(
                f"ticket-{1000 + position}",
                given,
                suggested,
                1.2 - 0.1 * position,
                "relabel",
                f"labelled {given}, the model without this row says {suggested} at 0.93",
                Shown("text", text=" ".join([TOPICS[suggested] + "."] * (1 + 3 * (position % 2)))),
                near,
                against,
            )
        )
    counts = np.array([[0, 9, 1], [4, 0, 0], [2, 3, 1]])
    return replace(
        base,
        title="Support tickets",
        rows=rows,
        truth=(),
        classes=names,
        confusion=Confusion(names, counts, np.array([120, 80, 0])),
        distributions=[replace(base.distributions[0], wrong=None)],
        signals=[replace(signal, average_precision=None) for signal in base.signals],
        accuracy=replace(base.accuracy, difference=replace(base.accuracy.difference, low=-0.004)),
    )


def feature_report(n_rows: int = 4, n_features: int = 15) -> CleanReport:
    """The same page with rows of numeric features."""
    base, rng = image_report(1), np.random.default_rng(1)

    def shown() -> Shown:
        values = {f"mean concavity {i}": float(rng.lognormal(i - 6.0, 0.3)) for i in range(n_features)}
        return Shown("features", features=values | {"clinic": "north", "smoker": True, "visits": 3})

    rows = [
        ReportRow(
            position,
            "malignant",
            "benign",
            0.8,
            "review",
            "labelled malignant, the model without this row says benign at 0.88",
            shown(),
            [Neighbour(i, "benign", 0.4 / (i + 1), shown()) for i in range(5)],
            [Neighbour(i, "malignant", -0.3 / (i + 1), shown()) for i in range(5)],
        )
        for position in range(n_rows)
    ]
    return replace(base, title="Tumours", rows=rows, confusion=None, curves=(), accuracy=None)
