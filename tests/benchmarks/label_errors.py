"""Average precision of finding wrong labels: one training run of ours against cleanlab's five, same model, data and options.

cleanlab's way: 5-fold cross-validation (five trainings, each on four fifths of the training rows) gives every row
probabilities of a model that never saw it; its label quality scores order the rows, alone or below those that one of its
filters found. Of these 25 orders the best by the true labels is taken, which nobody could choose without knowing them.
Ours: one training on all rows, then the default signal, whatever the task; once with as many epochs as each of the five
(`ours`) and once with half of them (`half`), as the kernel needs no model that is trained to the end.

`ahead`: ours minus cleanlab's best, mean over the seeds, `+-` its standard error. A seed draws the validation split, the
planted noise (the reviews have real errors instead), the initial weights, the order of training and the folds.
`time`: CPU seconds of ours (training, forward pass, signals, count of errors) over those of cleanlab's way (five trainings
with their predictions, one quality score, one count; not the search for the best). Our training leaves the model of all
rows; who wants that beside cleanlab's scores trains a sixth, with which `time (6)` divides. `signals`: seconds of
everything after our training over those of the training. Reading the data and the other stages of `clean` are in neither.
`counted`, `its count`: estimated numbers of errors, ours and cleanlab's, beside the true one.
cleanlab is no dependency: `pip install cleanlab` first. Digits only, where no folder of data is given.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from cleanlab.count import num_label_issues
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold

from curation.data import CuratedData, Digits, TableData
from curation.mislabel import DEFAULT_SIGNAL, estimate_errors, forward_pass, kernel_loo, loo_probabilities, signals
from curation.models import build_model
from curation.training import TrainOptions, train
from tests.benchmarks.table import Row, show

QUALITY = (  # cleanlab's quality scores, without and with its adjustment of the probabilities
    ("self_confidence", False),
    ("self_confidence", True),
    ("normalized_margin", False),
    ("normalized_margin", True),
    ("confidence_weighted_entropy", False),
)
FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning")
FOLDS = 5
SEEDS = 3
IMAGES, TEXTS = "curation.models.ImageClassifier", "curation.models.TextClassifier"


@dataclass(frozen=True)
class Task:
    """One data set, its model, and how long it is trained."""

    name: str
    data: Callable[[int], CuratedData]
    model: str
    epochs: int
    init_args: dict[str, Any] = field(default_factory=dict)


def tasks(folder: Path | None) -> Iterator[Task]:
    """The digits; and Fashion-MNIST and the reviews where the folder that holds them is given."""
    for kind in ("uniform", "pairwise", "feature"):

        def digits(seed: int, kind: str = kind) -> CuratedData:
            return Digits(noise={"kind": kind, "rate": 0.1, "seed": seed}, seed=seed)

        yield Task(f"digits, {kind} 10 %", digits, IMAGES, 12)
    if folder is None:
        return

    def fashion(seed: int) -> CuratedData:
        arrays = np.load(folder / "fashion_mnist_12k.npz")
        frame = pl.DataFrame({"image": arrays["x_train"], "label": arrays["y_train"].astype(np.int64)})
        noise = {"kind": "pairwise", "rate": 0.1, "seed": seed}
        with tempfile.TemporaryDirectory() as made:
            path = Path(made) / "fashion.parquet"
            frame.write_parquet(path)
            return TableData(path, "label", image="image", noise=noise, validation_fraction=0.1, seed=seed)

    yield Task("Fashion-MNIST 12k, pairwise 10 %", fashion, IMAGES, 4, {"channels": 8})
    for source in ("amazon", "tweets", "nyt"):

        def reviews(seed: int, path: Path = folder / f"reviews_{source}.parquet") -> CuratedData:
            return TableData(path, "label", text="text", true_label="true_label", validation_fraction=0.1, seed=seed)

        yield Task(f"reviews, {source}", reviews, TEXTS, 10)


def trained(task: Task, data: CuratedData, seed: int, epochs: int) -> torch.nn.Module:
    """The task's model after ``epochs`` over the training rows of ``data``."""
    model = build_model(task.model, task.init_args, data.model_defaults(), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, TrainOptions(max_epochs=epochs, seed=seed, threads=1, progress=False), Path(folder))
    return model


def cross_validated(task: Task, data: CuratedData, seed: int) -> np.ndarray:
    """Out-of-fold probabilities [N, K] of five trainings."""
    labels, ids = data.train_labels(), np.array(data.train_ids(), dtype=object)
    probabilities = np.zeros((len(labels), len(data.classes)))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for _, held_out in folds.split(np.zeros(len(labels)), labels):
        decisions = pl.DataFrame({"example_id": ids[held_out].tolist(), "decision": ["drop"] * len(held_out)})
        decisions = decisions.with_columns(suggested_label=pl.lit(None, dtype=data.examples["label"].dtype))
        model = trained(task, data.edited(decisions), seed, task.epochs)
        with torch.no_grad():
            for part in np.array_split(held_out, max(1, len(held_out) // 256)):
                rows = torch.stack([data.train_dataset[int(row)][0] for row in part])
                probabilities[part] = model(rows).double().softmax(1).numpy()
    return probabilities


def best_of_cleanlab(labels: np.ndarray, probabilities: np.ndarray, wrong: np.ndarray) -> float:
    """Highest average precision of its quality scores, alone or below the rows that one of its filters found."""
    filters = [find_label_issues(labels, probabilities, filter_by=name, n_jobs=1) for name in FILTERS]
    found = []
    for method, adjust in QUALITY:
        scores = -get_label_quality_scores(labels, probabilities, method=method, adjust_pred_probs=adjust)
        # Quality scores lie in [0, 1]: 2 puts every row the filter found before the others.
        orders = [scores, *(scores + 2.0 * flagged for flagged in filters)]
        found += [average_precision_score(wrong, order) for order in orders]
    return float(max(found))


@dataclass(frozen=True)
class Ours:
    """One training of ours: average precision, estimated number of errors, CPU seconds."""

    precision: float
    count: int
    training: float
    signals: float


def one_training(task: Task, data: CuratedData, seed: int, epochs: int, wrong: np.ndarray) -> Ours:
    """Train once, then all of what `clean` does to find and count errors without its index."""
    labels = data.train_labels()
    begin = time.process_time()
    model = trained(task, data, seed, epochs)
    middle = time.process_time()
    forward = forward_pass(model, data.ordered_dataloader(batch_size=256))
    kernel = kernel_loo(forward.inputs, labels, len(data.classes))
    scores = signals(forward, kernel_scores=kernel)[DEFAULT_SIGNAL].to_numpy()
    count = estimate_errors(loo_probabilities(kernel, labels), labels)
    end = time.process_time()
    return Ours(float(average_precision_score(wrong, scores)), count, middle - begin, end - middle)


def compare(task: Task, seed: int) -> dict[str, float]:
    """Every figure of one seed."""
    data = task.data(seed)
    labels, frame = data.train_labels(), data.examples.filter(split="train")
    wrong = (frame["true_label"] != frame["label"]).to_numpy()
    ours = one_training(task, data, seed, task.epochs, wrong)
    half = one_training(task, data, seed, task.epochs // 2, wrong)
    begin = time.process_time()
    probabilities = cross_validated(task, data, seed)
    get_label_quality_scores(labels, probabilities)
    count = num_label_issues(labels, probabilities)
    folds = time.process_time() - begin
    best = best_of_cleanlab(labels, probabilities, wrong)
    return {
        "ours": ours.precision,
        "half": half.precision,
        "cleanlab": best,
        "ahead": ours.precision - best,
        "half ahead": half.precision - best,
        "time": (ours.training + ours.signals) / folds,
        "half time": (half.training + half.signals) / folds,
        "time (6)": (ours.training + ours.signals) / (folds + ours.training),
        "signals": ours.signals / ours.training,
        "errors": float(wrong.sum()),
        "counted": float(ours.count),
        "half counted": float(half.count),
        "its count": float(count),
    }


def summary(name: str, runs: list[dict[str, float]]) -> Row:
    """Means over the seeds; standard errors beside the two differences."""
    figures: dict[str, float | int | str | None] = {}
    for key in runs[0]:
        values = np.array([run[key] for run in runs])
        figures[key] = float(values.mean())
        if key.endswith("ahead"):
            spread = float(values.std(ddof=1) / len(runs) ** 0.5) if len(runs) > 1 else None
            figures["+-" if key == "ahead" else "half +-"] = spread
    return Row(f"{name} ({len(runs)} seeds)", figures)


def main(argv: list[str] | None = None) -> list[Row]:
    """Print each run as it ends, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with fashion_mnist_12k.npz and reviews_*.parquet")
    parser.add_argument("--only", default="", help="only tasks whose name contains this")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each task (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    first = next(tasks(None))
    trained(first, first.data(0), seed=0, epochs=1)  # the first training of a process also loads modules
    rows = []
    for task in tasks(args.data):
        if args.only not in task.name:
            continue
        runs = []
        for seed in range(args.seeds):
            runs.append(compare(task, seed))
            print(f"{task.name}, seed {seed}:", *(f"{key} {value:.4g}" for key, value in runs[-1].items()), flush=True)
        rows.append(summary(task.name, runs))
    return show("average precision of finding wrong labels", rows)


if __name__ == "__main__":
    main()
