"""States of a warm-up training that score a pool: its weights after some epochs, with what its optimizer had gathered."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.optim import Adam, AdamW, Optimizer

from curation.errors import ModelError
from curation.models.checkpoints import read_checkpoint, write_checkpoint
from curation.training import RUN_STATE

OPTIMIZERS = "optimizer_states"
RATE = "learning_rate"


def state_file(epoch: int) -> str:
    """The name of the file of the state after an epoch."""
    return f"epoch-{epoch:04d}.ckpt"


class States(Callback):
    """Writes the state after some epochs into a file of its own, `state_file`: a checkpoint that a model is loaded from.

    Beside the weights it has ``optimizer_states``, and ``learning_rate``: the mean one, of the first group of parameters, over the
    optimizer steps since the state before. A training that is interrupted and goes on writes the same states.

    Args:
        folder: of the training.
        epochs: after which a state is written, numbers from 1.
        adam: refuse a training whose optimizer is not Adam, when it starts.
    """

    def __init__(self, folder: Path, epochs: Collection[int], *, adam: bool) -> None:
        self.folder, self.epochs, self.adam = folder, frozenset(epochs), adam
        self._total, self._steps = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an optimizer that has not what is asked of it."""
        if self.adam:
            check_adam(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the learning rate of the step."""
        self._total += float(trainer.optimizers[0].param_groups[0]["lr"])
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the state where it is asked for."""
        epoch = trainer.current_epoch + 1
        if epoch not in self.epochs:
            return
        file = self.folder / state_file(epoch)
        trainer.save_checkpoint(file)
        if trainer.is_global_zero:
            content = read_checkpoint(file)
            kept = {name: content[name] for name in content if name not in RUN_STATE or name == OPTIMIZERS}
            write_checkpoint(kept | {RATE: self._total / self._steps}, file)
        self._total, self._steps = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"total": self._total, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._total, self._steps = state_dict["total"], state_dict["steps"]


def check_adam(optimizers: Collection[Optimizer]) -> None:
    """Nothing, for one Adam or AdamW with one group of parameters.

    Raises:
        ModelError: for others.
    """
    kinds = [f"{type(one).__name__} of {len(one.param_groups)} groups of parameters" for one in optimizers]
    one = next(iter(optimizers), None)
    if len(kinds) != 1 or not isinstance(one, (Adam, AdamW)) or len(one.param_groups) != 1:
        raise ModelError(
            f"scores.adam: the model is trained with {' and '.join(kinds) or 'no optimizer'}; expected one Adam or AdamW with one "
            "group of parameters: leave scores.adam out"
        )
