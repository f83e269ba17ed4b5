"""Average precision of finding wrong labels: one model of ours against cleanlab's five, same model, data and training.

cleanlab's way: 5-fold cross-validated probabilities (five trainings), then its label quality scores; the best of them is
taken. Ours: one training on all rows, then the default signal. Times are whole: trainings, forward passes and scoring.
cleanlab is no dependency: `pip install cleanlab` first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold

from curation.data import CuratedData, Digits, TableData
from curation.mislabel import DEFAULT_SIGNAL, forward_pass, signals
from curation.models import build_model
from curation.training import TrainOptions, train
from tests.benchmarks.table import Row, show

CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
FOLDS = 5


@dataclass(frozen=True)
class Task:
    """One data set, its model, and how long it is trained."""

    name: str
    data: Callable[[int], CuratedData]
    model: str
    init_args: dict[str, Any]
    epochs: int
    seeds: int


def tasks(folder: Path | None) -> Iterator[Task]:
    """The digits; and Fashion-MNIST and the reviews where the folder that holds them is given."""
    for kind in ("uniform", "pairwise", "feature"):

        def digits(seed: int, kind: str = kind) -> CuratedData:
            return Digits(noise={"kind": kind, "rate": 0.1, "seed": seed}, seed=seed)

        yield Task(f"digits, {kind} 10 %", digits, "curation.models.ImageClassifier", {}, 12, 3)
    if folder is None:
        return

    def fashion(seed: int) -> CuratedData:
        table = Path(tempfile.gettempdir()) / "fashion_mnist_12k.parquet"
        if not table.exists():
            arrays = np.load(folder / "fashion_mnist_12k.npz")
            keys = sorted(arrays.files)
            images, labels = (next(arrays[k] for k in keys if "train" in k and arrays[k].ndim == n) for n in (3, 1))
            frame = pl.DataFrame(
                {"image": pl.Series(images.reshape(len(images), -1).astype(np.int64).tolist()), "label": labels}
            )
            frame.write_parquet(table)
        noise = {"kind": "pairwise", "rate": 0.1, "seed": seed}
        return TableData(
            table, "label", image="image", image_shape=(28, 28), noise=noise, validation_fraction=0.1, seed=seed
        )

    yield Task("Fashion-MNIST 12k, pairwise 10 %", fashion, "curation.models.ImageClassifier", {"channels": 8}, 4, 1)
    for source in ("amazon", "tweets", "nyt"):

        def reviews(seed: int, source: str = source) -> CuratedData:
            path = folder / f"reviews_{source}.parquet"
            return TableData(path, "label", text="text", true_label="true_label", validation_fraction=0.1, seed=0)

        yield Task(f"reviews, {source}", reviews, "curation.models.TextClassifier", {}, 10, 3)


def trained(task: Task, data: CuratedData, seed: int) -> torch.nn.Module:
    """The task's model after its training on the training rows of `data`."""
    model = build_model(task.model, task.init_args, data.model_defaults(), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, TrainOptions(max_epochs=task.epochs, seed=seed, threads=1, progress=False), Path(folder))
    return model


def cross_validated(task: Task, data: CuratedData, seed: int) -> np.ndarray:
    """Out-of-fold probabilities [N, K] of five trainings."""
    labels, ids = data.train_labels(), np.array(data.train_ids(), dtype=object)
    probabilities = np.zeros((len(labels), len(data.classes)))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for _, held_out in folds.split(np.zeros(len(labels)), labels):
        decisions = pl.DataFrame({"example_id": ids[held_out].tolist(), "decision": ["drop"] * len(held_out)})
        decisions = decisions.with_columns(suggested_label=pl.lit(None, dtype=data.examples["label"].dtype))
        model = trained(task, data.edited(decisions), seed)
        logits = torch.from_numpy(forward_pass(model, data.ordered_dataloader()).logits)
        probabilities[held_out] = logits.double().softmax(1).numpy()[held_out]
    return probabilities


def compare(task: Task, seed: int) -> dict[str, float]:
    """Average precision and seconds of both."""
    data = task.data(seed)
    frame = data.examples.filter(split="train")
    wrong = (frame["true_label"] != frame["label"]).to_numpy()
    begin = time.process_time()
    model = trained(task, data, seed)
    trained_at = time.process_time()
    scores = signals(forward_pass(model, data.ordered_dataloader()))[DEFAULT_SIGNAL].to_numpy()
    ours = time.process_time()
    probabilities = cross_validated(task, data, seed)
    labels = data.train_labels()
    quality = {m: get_label_quality_scores(labels, probabilities, method=m, adjust_pred_probs=False) for m in CLEANLAB}
    theirs = time.process_time()
    best = max(average_precision_score(wrong, -value) for value in quality.values())
    return {
        "ours": float(average_precision_score(wrong, scores)),
        "cleanlab": float(best),
        "time ratio": (ours - begin) / (theirs - ours),
        "time ratio, both keep a final model": (ours - begin) / (theirs - ours + trained_at - begin),
    }


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with fashion_mnist_12k.npz and reviews_*.parquet")
    parser.add_argument("--only", default="", help="only tasks whose name contains this")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for task in tasks(args.data):
        if args.only not in task.name:
            continue
        runs = [compare(task, seed) for seed in range(task.seeds)]
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        ahead = np.array([run["ours"] - run["cleanlab"] for run in runs])
        error = float(ahead.std(ddof=1) / len(runs) ** 0.5) if len(runs) > 1 else None
        figures = {"ours": mean["ours"], "cleanlab": mean["cleanlab"], "ahead": float(ahead.mean()), "s.e.": error}
        rows.append(Row(f"{task.name} ({len(runs)} seeds)", figures | {k: mean[k] for k in mean if "ratio" in k}))
        print(rows[-1], flush=True)
    return show("average precision of finding wrong labels", rows)


if __name__ == "__main__":
    main()
