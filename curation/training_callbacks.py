"""What happens at the steps of a training: random numbers, history, the checkpoint to go on from, progress."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from rich import progress as bars
from rich.console import Console

from curation.errors import TrainingError
from curation.models.checkpoints import write_checkpoint
from curation.models.kinds import CLASSIFIER, kind_of
from curation.models.seeding import seed_all

logger = logging.getLogger("curation.training")

# Seconds between two lines of progress where there is no terminal.
LINE_EVERY = 2.0
ADVICE = "Try a lower lr, or gradient_clip: 1.0; precision: 32-true if it was lower; and look for extreme values in the inputs."


class Recorder(Callback):
    """Keeps the history, seeds every epoch, saves the state between epochs; stops where the model or its loss is wrong.

    Args:
        last: where to save the state at the start of every epoch and after the last one.
        seed: of the training.
        identity: saved along, for a later run to see whether it may go on from there.

    Attributes:
        history: one dict a finished epoch.
        kind: what the model is, by the batches it is validated on.
        seconds: spent so far, earlier runs included.
    """

    def __init__(self, last: Path, seed: int, identity: Mapping[str, str]) -> None:
        self.last, self.seed, self.identity = last, seed, dict(identity)
        self.history: list[dict[str, float]] = []
        self.kind = CLASSIFIER
        self.seconds = 0.0
        self._losses: list[float] = []
        self._since = time.perf_counter()
        self._fresh_run = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a model that does not fit the rows."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        classes = getattr(data, "classes", None)
        for batch in data.val_dataloader():
            self.kind = kind_of(batch)
            self.kind.check(pl_module, batch, None if classes is None else len(classes))
            break

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state, then draw everything in this epoch from its own seed."""
        trainer.save_checkpoint(self.last)
        self._losses = []
        seed_all(self.seed, trainer.current_epoch)
        order = int(torch.randint(2**62, ()))
        for loader in CombinedLoader(trainer.train_dataloader).flattened:
            for owner in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
                generator = getattr(owner, "generator", None)
                if isinstance(generator, torch.Generator):
                    generator.manual_seed(order)
        if self._fresh_run:
            # Lightning made the first iterator of this run before this hook, from another random state.
            iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
            self._fresh_run = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the loss of the step; TrainingError when it is not finite."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        self._losses.append(float(loss))
        if not math.isfinite(self._losses[-1]):
            where = f"epoch {trainer.current_epoch + 1}, step {batch_idx + 1} of {trainer.num_training_batches}"
            raise TrainingError(f"the training loss is {self._losses[-1]} at {where}. {ADVICE}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch to the history; what the model does not log itself is measured here."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = f"val_{self.kind.rate}"
        if "val_loss" not in logged or rate not in logged:
            measured = self.kind.measure(pl_module, trainer.datamodule.val_dataloader())  # type: ignore[attr-defined]
            logged = {"val_loss": measured["loss"], rate: measured[self.kind.rate]} | logged
        losses = self._losses or [logged.get("train_loss", math.nan)]
        train_loss = trainer.strategy.reduce(torch.tensor(sum(losses) / len(losses)), reduce_op="mean")
        epoch = trainer.current_epoch + 1
        if not math.isfinite(logged["val_loss"]):
            raise TrainingError(f"the validation loss is {logged['val_loss']} after epoch {epoch}. {ADVICE}")
        self.history.append(
            {
                "epoch": epoch,
                "train_loss": float(train_loss),
                "val_loss": logged["val_loss"],
                rate: logged[rate],
            }
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        trainer.save_checkpoint(self.last)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the state one between two epochs, holding nothing that is not needed to go on.

        It is saved when the next epoch is announced, not when one ends: only then have the schedulers that step
        once an epoch taken their step. So the announcement is taken back.
        """
        for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            counts["ready"] = counts["completed"]
        # The data module's parameters may be anything, a Path for one, and are not read from here.
        for name in [name for name in checkpoint if name.startswith("datamodule_")]:
            del checkpoint[name]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        return {"history": [dict(epoch) for epoch in self.history], "seconds": self.seconds, "identity": self.identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]


class WholeFiles(TorchCheckpointIO):
    """Has Lightning write its checkpoints aside and rename them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; TrainingError when it cannot be written."""
        write_checkpoint(checkpoint, Path(path))


class Progress(Callback):
    """A bar on a terminal; elsewhere a line in the log per epoch, at most one every two seconds.

    Args:
        recorder: whose history is shown; it must come before this callback.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._bar: bars.Progress | None = None
        self._task = bars.TaskID(0)
        self._last_line = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, where there is a terminal."""
        if not (trainer.is_global_zero and sys.stderr.isatty()):
            return
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TaskProgressColumn())
        self._bar = bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
        known = math.isfinite(batches)
        self._task = self._bar.add_task(
            "training",
            total=batches * epochs if known else None,
            completed=int(batches * trainer.current_epoch) if known else 0,
        )
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.advance(self._task)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the figures of the epoch."""
        last, rate = self._recorder.history[-1], self._recorder.kind.rate
        text = "epoch {epoch}/{of}: train loss {train_loss:.4f}, validation loss {val_loss:.4f}, {rate} {share:.4f}"
        line = text.format(of=trainer.max_epochs, rate=rate, share=last[f"val_{rate}"], **last)
        if self._bar:
            self._bar.update(self._task, description=line)
        elif trainer.is_global_zero and time.monotonic() - self._last_line >= LINE_EVERY:
            logger.info(line)
            self._last_line = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
