"""What a job indexes: the attributor over its model, and its training rows. Every worker of an index opens it alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning import LightningModule

from curation.data import ExampleData
from flows.schema import HOW_ONLY
from flows.stages.common import Arguments, Progress, objective_of, open_data, trained_model
from lorif_core import LoRIF


@dataclass(frozen=True)
class Rows:
    """Training rows in index order, and their ids."""

    loader: Iterable[Any]
    ids: list[str] | list[int]


def indexed(arguments: Arguments, progress: Progress) -> tuple[LoRIF, Rows]:
    """The attributor of a job, with the weights of ``checkpoint``, and the rows to fit it on.

    Raises:
        DataError: the data is wrong, or not what it was when the run began.
        ModelError: the checkpoint does not fit.
    """
    data = open_data(arguments)
    return attributor_and_rows(arguments, data, trained_model(arguments, data, arguments["checkpoint"]), progress)


def attributor_and_rows(
    arguments: Arguments, data: ExampleData, model: LightningModule, progress: Progress
) -> tuple[LoRIF, Rows]:
    """The attributor of a job over a model, and its training rows."""
    options = {name: value for name, value in arguments["index"].items() if name not in HOW_ONLY | {"batch_size"}}
    rows = Rows(data.ordered_dataloader("train", arguments["index"]["batch_size"]), data.train_ids())
    return LoRIF(model, objective_of(data), **options, progress=progress), rows
