"""Stage weigh: how hard each record is pushed out of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.data import ExampleData
from curation.examples import write_parquet_atomic
from curation.unlearning.alignment import Alignment, by_factors
from curation.unlearning.module import evenly_spaced
from curation.unlearning.rows import Rows
from curation.unlearning.ways import Aligner
from curation.unlearning.weights import Weights, guard_weights, random_weights, uniform_weights
from flows.stages.common import Arguments, Output, Progress, open_data, trained_model
from flows.stages.resolving import staying
from lorif_core import FactorStore
from lorif_core.objectives import IGNORED
from lorif_core.remote import checkout


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Weigh the rows in ``records`` under the model in ``checkpoint``.

    Returns:
        ``values``: ``effective_size``, ``opposition``, ``warnings``, ``way`` (None where nothing was scored); file
        ``weights`` (``example_id``, ``weight``, ``alignment``: positive = its removal costs what stays).
    """
    data, options = open_data(arguments), arguments["weights"]
    records = pl.read_parquet(arguments["records"])
    forget, retain = split_rows(data, records, arguments["retain"], arguments["unlearn"])
    way = None
    if options["method"] in ("guard", "guard-dynamic"):
        alignment = _alignment(arguments, data, forget, retain)
        way = alignment.way
        weights = guard_weights(alignment.values, options["temperature"], alignment.opposition)
    elif options["method"] == "random":
        weights = random_weights(len(forget), options["temperature"], arguments["unlearn"]["seed"])
    else:
        weights = uniform_weights(len(forget))
    frame = pl.DataFrame(
        {"example_id": records["example_id"], "weight": weights.values, "alignment": weights.alignment},
        schema_overrides={"alignment": pl.Float64},
    )
    write_parquet_atomic(frame, folder / "weights.parquet")
    values = {
        "effective_size": weights.effective_size,
        "opposition": weights.opposition,
        "warnings": list(weights.warnings),
        "way": way,
    }
    return Output(values, {"weights": "weights.parquet"})


def split_rows(
    data: ExampleData, records: pl.DataFrame, asked: dict[str, Any], options: dict[str, Any]
) -> tuple[Rows, Rows]:
    """The records, and the rows that stay: those ``asked`` for (some of them, where ``retain_rows`` says so)."""
    forget = records["position"].to_numpy().copy()
    retain = staying(data, forget, asked)
    if options["retain_rows"] is not None:
        retain = evenly_spaced(retain, options["retain_rows"])
    size = options["batch_size"]
    return Rows(data.train_dataset, forget, data.collate, size), Rows(data.train_dataset, retain, data.collate, size)


def read_weights(path: str) -> Weights:
    """What the stage wrote."""
    frame = pl.read_parquet(path)
    return Weights(frame["weight"].to_numpy().copy())


def _alignment(arguments: Arguments, data: ExampleData, forget: Rows, retain: Rows) -> Alignment:
    """Of the records, in the way asked for; by default from the index where there is one."""
    options, index = arguments["weights"], arguments["index_path"]
    way, cosine = options["way"], by_cosine(options)
    if way == "factors" or (way == "auto" and index is not None and options["method"] == "guard"):
        store = FactorStore.open(checkout(index))
        return by_factors(store, forget.positions, retain.positions, tokens_of(data), cosine=bool(cosine))
    aligner = Aligner(forget, retain, way, cosine=cosine)
    return aligner(trained_model(arguments, data, arguments["checkpoint"]))


def by_cosine(options: dict[str, Any]) -> bool | None:
    """Whether alignments are cosines; None: where the way has them."""
    if options["score"] is None:
        return None if options["method"] == "guard-dynamic" else False
    return bool(options["score"] == "cosine")


def tokens_of(data: ExampleData) -> np.ndarray:
    """How many predictions each training row's loss is summed over, int64 [N]."""
    rows = data.train_dataset
    if data.payload_kind != "questions":
        return np.ones(len(rows), dtype=np.int64)
    return np.array([int((rows[row]["labels"][1:] != IGNORED).sum()) for row in range(len(rows))])
