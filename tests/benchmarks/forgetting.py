"""What the benchmark of unlearning weights unlearns: models that know people by heart, and requests to forget some of them.

Axes: n records to be forgotten.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule

from curation.data import People, QuestionTable
from curation.data.questions import Questions
from curation.models import build_model, load_model
from curation.training import TrainOptions, train

MODEL = "curation.models.TinyGPT"
PEOPLE, PEOPLE_GONE = 20, 3
"""People that are learnt, and of them those a request is about: 21 of 140 rows."""
AUTHORS, AUTHORS_GONE, ROWS_OF_AUTHOR = 10, 3, 6
"""Authors retained; those of TOFU's forget10 a request is about, as many others of it never learnt; each one's shortest rows:
18 of 78 rows are to be forgotten."""


@dataclass(frozen=True)
class Request:
    """A data set of one seed, and who is to be forgotten.

    Attributes:
        data: with rows of the split holdout, of people no model is trained on.
        records: positions among the training rows, int64 [n].
    """

    data: Questions
    records: np.ndarray


@dataclass(frozen=True)
class Task:
    """Data, the model that learns them, and how long."""

    name: str
    request: Callable[[int], Request]
    epochs: int
    init_args: dict[str, Any]

    def model(self, data: Questions, seed: int, kept: Path) -> LightningModule:
        """The model trained from ``seed``; read from the folder ``kept`` where it was before."""
        folder = kept / f"{self.name}-{seed}-{data.digest()[:12]}"
        defaults = data.model_defaults()
        if not (folder / "model.ckpt").exists():
            model = build_model(MODEL, self.init_args, defaults, seed=seed)
            train(model, data, TrainOptions(max_epochs=self.epochs, seed=seed, threads=1, progress=False), folder)
        return load_model(MODEL, folder / "model.ckpt", self.init_args, defaults)


def people(seed: int) -> Request:
    """Some of the embedded people, drawn by the seed."""
    data = People(n_people=PEOPLE, vocabulary=512)
    frame = data.examples.filter(split="train")
    names = frame["subject"].unique(maintain_order=True)
    gone = names[np.random.default_rng(seed).permutation(len(names))[:PEOPLE_GONE]]
    return Request(data, frame["subject"].is_in(gone.implode()).arg_true().to_numpy().astype(np.int64))


def tofu(path: Path, seed: int) -> Request:
    """Some authors of forget10 among the retained ones; the seed draws who is forgotten and who is never learnt."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    forget = np.array(sorted({row["author"] for row in rows if row["split"] != "retain"}))
    drawn = np.random.default_rng(seed).permutation(forget)
    gone, unseen = set(drawn[:AUTHORS_GONE].tolist()), set(drawn[AUTHORS_GONE : 2 * AUTHORS_GONE].tolist())
    chosen: list[dict[str, Any]] = []
    retained = sorted({row["author"] for row in rows if row["split"] == "retain"})[:AUTHORS]
    for author in sorted({*retained, *gone, *unseen}):
        own = [row for row in rows if row["author"] == author]
        split = "holdout" if author in unseen else "train"
        own.sort(key=lambda row: len(row["question"] + row["answer"]))
        chosen += [{**row, "author": str(author), "split": split} for row in own[:ROWS_OF_AUTHOR]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tofu.json"
        file.write_text(json.dumps(chosen), encoding="utf-8")
        data = QuestionTable(file, subject="author", split="split", vocabulary=1024)
    subjects = data.examples.filter(split="train")["subject"].to_list()
    return Request(data, np.flatnonzero([int(subject) in gone for subject in subjects]))


def tasks(folder: Path | None) -> list[Task]:
    """People; and TOFU where the folder of its file is given."""
    found = [Task("people", people, 40, {"depth": 1, "width": 64, "lr": 5e-3})]
    if folder is not None:
        file = folder / "tofu_700.json"
        found.append(Task("TOFU", lambda seed: tofu(file, seed), 50, {"depth": 1, "width": 64, "lr": 5e-3}))
    return found
