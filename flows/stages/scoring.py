"""Stage score: every signal of every training row. HIGHER = MORE LIKELY MISLABELLED, whatever the signal.

Axes: N training rows, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.examples import write_parquet_atomic
from curation.mislabel import forward_pass, kernel_loo, signals
from flows.stages.common import Arguments, Output, Progress, device, open_labelled
from flows.stages.indexing import open_index
from flows.stages.influence import influence
from lorif_core.atomic import replacing


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Compute the signals the configuration asks for, under the model and the index of the job.

    Returns:
        Files ``scores`` (``example_id`` and one column a signal) and ``kernel`` (leave-one-out scores, float64 [N, K]).
    """
    data, wanted = open_labelled(arguments), arguments["signals"]
    attributor, model = open_index(arguments, data, progress)
    loader = data.ordered_dataloader("train", arguments["index"]["batch_size"])
    forward = forward_pass(model, counted(loader, len(data.train_dataset), progress), device(arguments))
    kernel = kernel_loo(
        forward.inputs,
        forward.labels,
        len(data.classes),
        kernel=wanted["kernel"],
        damping=wanted["damping"],
        landmarks=wanted["landmarks"],
    )
    extra: dict[str, Any] = {}
    found = {name: tensor.numpy() for name, tensor in influence(arguments, folder, attributor, data, progress).items()}
    if "proponents" in found:
        extra["proponent_labels"] = forward.labels[found.pop("proponents")]
    extra |= found
    frame = signals(forward, kernel_scores=kernel, average=wanted["rank_average"], **extra)
    frame = frame.insert_column(0, pl.Series("example_id", data.train_ids()))
    write_parquet_atomic(frame, folder / "scores.parquet")

    with replacing(folder / "kernel.npy") as file:
        np.save(file, kernel, allow_pickle=False)
    return Output({"signals": frame.columns[1:]}, {"scores": "scores.parquet", "kernel": "kernel.npy"})


def counted(loader: Iterable[Any], total: int, progress: Progress) -> Iterator[Any]:
    """The batches of ``loader``, telling ``progress`` of the rows that have passed."""
    done = 0
    for batch in loader:
        yield batch
        done += len(batch[1])
        progress("forward, row", done, total)
