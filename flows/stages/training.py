"""Stage train, of all rows, of those left by decisions or of chosen ones: the one training runner of `curation.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from lightning import Callback, Trainer

from curation.models.checkpoints import read_checkpoint
from curation.selection.states import RATE, States, state_file
from curation.training import TrainOptions, train
from flows.environment import threads_default
from flows.stages.chosen_rows import chosen_rows
from flows.stages.common import Arguments, Output, Progress, new_model, open_data, trained_model


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Train the job's model on the job's data, or, with ``decisions``, on the data after those edits.

    With ``chosen`` it is trained on some of the rows (`flows.stages.chosen_rows`); ``chosen.start`` may name a checkpoint to train
    on from, and after the epochs ``chosen.states`` its state is kept. Goes on from the last finished epoch that an interrupted run
    left in ``folder``.

    Returns:
        ``values``: ``metrics``, ``history`` (one mapping an epoch), ``steps`` (of the optimizer), ``seconds`` and
        ``learning_rates`` (epoch -> the mean one that led to that state); files ``checkpoint`` and, of each state, ``epoch-N``.
    """
    data = open_data(arguments)
    if arguments["decisions"] is not None:
        data = data.edited(pl.read_parquet(arguments["decisions"]))
    options, chosen = arguments["train"], arguments.get("chosen")
    if chosen is not None and chosen["start"] is not None:
        model = trained_model(arguments, data, chosen["start"]).cpu()
    else:
        model = new_model(arguments, data, seed=options["seed"])
    rows = data if chosen is None else chosen_rows(arguments, data)
    how = TrainOptions(**options, threads=threads_default(), progress=False)
    epochs = [] if chosen is None else chosen["states"]
    kept = [States(folder, epochs, adam=arguments["scores"]["adam"])] if epochs else []
    result = train(model, rows, how, folder, callbacks=[_Steps(progress), *kept])
    values = {
        "metrics": result.metrics,
        "history": result.history,
        "seconds": result.seconds,
        "steps": len(rows.train_dataloader()) * options["max_epochs"],
        "learning_rates": {str(epoch): read_checkpoint(folder / state_file(epoch))[RATE] for epoch in epochs},
    }
    files = {f"epoch-{epoch}": state_file(epoch) for epoch in epochs}
    return Output(values, {"checkpoint": result.checkpoint.name, **files}, spent=("last.ckpt",))


class _Steps(Callback):
    """Tells the parent how many optimizer steps are done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        total = trainer.estimated_stepping_batches
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step"
        self._progress(epoch, trainer.global_step, int(total) if total != float("inf") else None)
