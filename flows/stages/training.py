"""Stage train, before and after cleaning: the one training runner of `curation.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from lightning import Callback, Trainer

from curation.training import TrainOptions, train
from flows.environment import threads_default
from flows.stages.common import Arguments, Output, Progress, new_model, open_data


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Train the job's model on the job's data, or, with ``decisions``, on the data after those edits.

    Goes on from the last finished epoch that an interrupted run left in ``folder``.

    Returns:
        ``values``: ``metrics``, ``history`` (one mapping an epoch) and ``seconds``; file ``checkpoint``.
    """
    data = open_data(arguments)
    if arguments["decisions"] is not None:
        data = data.edited(pl.read_parquet(arguments["decisions"]))
    options = arguments["train"]
    model = new_model(arguments, data, seed=options["seed"])
    chosen = TrainOptions(**options, threads=threads_default(), progress=False)
    result = train(model, data, chosen, folder, callbacks=[_Steps(progress)])
    values = {"metrics": result.metrics, "history": result.history, "seconds": result.seconds}
    return Output(values, {"checkpoint": result.checkpoint.name}, spent=("last.ckpt",))


class _Steps(Callback):
    """Tells the parent how many optimizer steps are done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        total = trainer.estimated_stepping_batches
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step"
        self._progress(epoch, trainer.global_step, int(total) if total != float("inf") else None)
