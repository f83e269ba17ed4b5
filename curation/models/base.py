"""What the shipped classifiers share: the loss and the logged figures.

Axes: B rows of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from curation.models.optimised import OptimisedModule


class Classifier(OptimisedModule):
    """A LightningModule whose ``forward`` maps inputs to logits [B, K], trained with cross entropy and AdamW.

    Subclasses build their layers, with the classification head as their last ``nn.Linear``, and write ``forward``. The
    shipped ones use neither dropout nor BatchNorm, so that an example's loss depends on that example alone.

    Args:
        num_classes: K, at least 2.
        lr: learning rate of AdamW, at the start when it follows a schedule.
        weight_decay: decoupled weight decay of AdamW.
        schedule: ``"constant"``, or ``"cosine"`` to bring the learning rate to zero over the planned optimizer steps.
        problems: what the subclass found wrong with its own arguments, to be reported together with the rest.

    Raises:
        ModelError: an argument is out of its range; lists all that are.
    """

    def __init__(
        self,
        num_classes: int,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        schedule: str = "constant",
        problems: Sequence[str] = (),
    ) -> None:
        found = list(problems)
        if num_classes < 2:
            found.append(f"num_classes must be at least 2, got {num_classes}")
        super().__init__(lr, weight_decay, schedule, found)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy of one batch ``(inputs, int64 codes [B])``, logged as ``train_loss``."""
        inputs, targets = batch
        loss = functional.cross_entropy(self(inputs), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(targets), sync_dist=True)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_accuracy``, means over the rows of the validation split."""
        inputs, targets = batch
        logits = self(inputs)
        accuracy = (logits.argmax(dim=1) == targets).float().mean()
        figures = {"val_loss": functional.cross_entropy(logits, targets), "val_accuracy": accuracy}
        self.log_dict(figures, batch_size=len(targets), sync_dist=True)


def dense(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear and ReLU layers from ``width`` inputs through the ``hidden`` widths; empty when there are none."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers)


def width_problems(hidden: Sequence[int]) -> list[str]:
    """What is wrong with a list of layer widths: nothing, or one sentence."""
    return [] if all(units >= 1 for units in hidden) else [f"hidden must hold positive widths, got {list(hidden)}"]
