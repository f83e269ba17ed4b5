"""What stages share: their result, and the data and model a job names, opened once a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning import LightningModule

from curation.data import CuratedData, ExampleData, build_data
from curation.errors import DataError
from curation.models import build_model, load_model
from flows.files import digest_of
from lorif_core import CausalLM, Classification, Objective

Progress = Callable[[str, int, int | None], None]
Arguments = Mapping[str, Any]

DEFAULT_MODELS = {
    "image": "curation.models.ImageClassifier",
    "text": "curation.models.TextClassifier",
    "features": "curation.models.TabularClassifier",
    "questions": "curation.models.TinyGPT",
}

_opened: dict[str, ExampleData] = {}


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
    """The data of a job (``data``: class_path and init_args, ``root``), read once a process.

    Raises:
        DataError: it is wrong, or not what it was when the run began (``data_digest``).
    """
    wanted = {"data": arguments["data"], "root": arguments["root"]}
    key = digest_of(wanted)
    if key not in _opened:
        path = qualified(arguments["data"]["class_path"], "curation.data")
        _opened[key] = build_data(path, arguments["data"]["init_args"], Path(arguments["root"]))
    data = _opened[key]
    expected = arguments.get("data_digest")
    if expected is not None and data.digest() != expected:
        raise DataError(
            [
                f"{arguments['data']['class_path']}: the data changed while the run was going (digest "
                f"{expected[:12]} then, {data.digest()[:12]} now): start the run again"
            ]
        )
    return data


def open_labelled(arguments: Arguments) -> CuratedData:
    """The data of a job that is about labels, as :func:`open_data`.

    Raises:
        DataError: the rows have no labels.
    """
    data = open_data(arguments)
    if not isinstance(data, CuratedData):
        raise DataError([f"{arguments['data']['class_path']} holds {data.payload_kind}; expected rows with labels"])
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
