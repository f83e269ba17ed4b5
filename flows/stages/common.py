"""What stages share: their result, and the data and model a job names, opened once a process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning import LightningModule

from curation.data import CuratedData, ExampleData, build_data
from curation.data.questions import Questions
from curation.errors import DataError
from curation.models import build_model, load_model
from flows.files import digest_file, digest_of
from lorif_core import CausalLM, Classification, Objective

Progress = Callable[[str, int, int | None], None]
Arguments = Mapping[str, Any]

DEFAULT_MODELS = {
    "image": "curation.models.ImageClassifier",
    "text": "curation.models.TextClassifier",
    "features": "curation.models.TabularClassifier",
    "questions": "curation.models.TinyGPT",
}

_opened: dict[str, tuple[ExampleData, int]] = {}  # and how many rows were left out


@dataclass(frozen=True)
class Output:
    """What a stage made.

    Attributes:
        values: small figures and texts, plain JSON.
        files: name -> path inside the stage's folder.
        spent: paths inside the folder that only an unfinished stage needs; removed once the manifest is written.
    """

    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    spent: tuple[str, ...] = ()


def open_data(arguments: Arguments) -> ExampleData:
    """The data of a job (``data``: class_path and init_args, ``root``), read once a process, without what was ``purged``.

    Raises:
        DataError: it is wrong, or not what it was when the run began (``data_digest``).
    """
    data = _opened_data(arguments)[0]
    expected = arguments.get("data_digest")
    if expected is not None and data.digest() != expected:
        raise DataError(
            [
                f"{arguments['data']['class_path']}: the data changed while the run was going (digest "
                f"{expected[:12]} then, {data.digest()[:12]} now): start the run again"
            ]
        )
    return data


def purged_rows(arguments: Arguments) -> int:
    """How many rows `open_data` leaves out because they were purged."""
    return _opened_data(arguments)[1]


def _opened_data(arguments: Arguments) -> tuple[ExampleData, int]:
    purged = Path(arguments["purged"]) if "purged" in arguments else None
    listed = digest_file(purged) if purged is not None and purged.is_file() else None
    key = digest_of({"data": arguments["data"], "root": arguments["root"], "purged": listed})
    if key not in _opened:
        path = qualified(arguments["data"]["class_path"], "curation.data")
        left_out = _LeftOut(purged) if purged is not None and listed is not None else None
        data = build_data(path, arguments["data"]["init_args"], Path(arguments["root"]), left_out)
        _opened[key] = data, left_out.rows if left_out is not None else 0
    return _opened[key]


@dataclass
class _LeftOut:
    """Says which rows of a data set stay where some were purged.

    Attributes:
        listed: the list of those.
        rows: how many training rows it left out.
    """

    listed: Path
    rows: int = 0

    def __call__(self, examples: pl.DataFrame, table: pl.DataFrame) -> pl.Series:
        """Which rows of the examples stay, bool [rows].

        Raises:
            DataError: no training row does.
        """
        from curation.unlearning.exclusions import excluded

        train = (examples["split"] == "train").arg_true()
        places = excluded(self.listed, _digests(table, train.to_list()))
        self.rows = len(places)
        if self.rows == len(train):
            raise DataError(
                [f"all {len(train)} training rows were purged ({self.listed}); nothing is left to train on"]
            )
        return ~pl.int_range(len(examples), eager=True).is_in(train.gather(places).to_list())


def content_digests(data: ExampleData, positions: Iterable[int]) -> list[str]:
    """sha256 (hex) of what the user's table says of each of these training rows."""
    rows = (data.examples["split"] == "train").arg_true().to_list()
    return _digests(data.table, [rows[position] for position in positions])


def _digests(table: pl.DataFrame, rows: Iterable[int]) -> list[str]:
    return [digest_of([str(cell) for cell in table.row(row)]) for row in rows]


def open_labelled(arguments: Arguments) -> CuratedData:
    """The data of a job that is about labels, as :func:`open_data`.

    Raises:
        DataError: the rows have no labels.
    """
    data = open_data(arguments)
    if not isinstance(data, CuratedData):
        raise DataError([f"{arguments['data']['class_path']} holds {data.payload_kind}; expected rows with labels"])
    return data


def questions_of(data: ExampleData) -> Questions:
    """The data of a job whose objective teaches another answer.

    Raises:
        DataError: the rows are no questions.
    """
    if not isinstance(data, Questions):
        raise DataError(
            [f"unlearn.objective: dpo and idk answer questions otherwise; the data holds {data.payload_kind}"]
        )
    return data


def objective_of(data: ExampleData) -> Objective:
    """What is differentiated for these rows: the loss a model of them is trained with, summed over tokens."""
    return CausalLM() if data.payload_kind == "questions" else Classification()


def model_class(arguments: Arguments, data: ExampleData) -> str:
    """Dotted path of the model's class: what the job names, else the shipped model for this kind of data."""
    return qualified(arguments["model"]["class_path"] or DEFAULT_MODELS[data.payload_kind], "curation.models")


def new_model(arguments: Arguments, data: ExampleData, seed: int) -> LightningModule:
    """The model of a job with fresh weights drawn from ``seed``."""
    init_args, root = arguments["model"]["init_args"], arguments["root"]
    return build_model(model_class(arguments, data), init_args, data.model_defaults(), seed=seed, root=root)


def trained_model(arguments: Arguments, data: ExampleData, checkpoint: str | Path) -> LightningModule:
    """The model of a job with the weights of ``checkpoint``, in eval mode, on the job's device."""
    init_args, root = arguments["model"]["init_args"], arguments["root"]
    model = load_model(model_class(arguments, data), checkpoint, init_args, data.model_defaults(), root=root)
    return model.to(device(arguments))


def device(arguments: Arguments) -> torch.device:
    """Where the job's model runs: as its training does."""
    wanted = arguments["train"]["accelerator"]
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def true_labels(data: ExampleData) -> pl.Series | None:
    """The true labels of the training rows, [N] in index order; None where they are not known."""
    train = data.examples.filter(split="train")
    return train["true_label"] if "true_label" in train.columns else None


def qualified(class_path: str, package: str) -> str:
    """``class_path``, a bare name being one of ``package``."""
    return class_path if "." in class_path else f"{package}.{class_path}"
