"""What every shipped model shares: AdamW with a learning rate that stays or falls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule

from curation.errors import ModelError

SCHEDULES = ("constant", "cosine")


class OptimisedModule(LightningModule):
    """A LightningModule trained with AdamW.

    Args:
        lr: learning rate of AdamW, at the start when it follows a schedule.
        weight_decay: decoupled weight decay of AdamW.
        schedule: ``"constant"``, or ``"cosine"`` to bring the learning rate to zero over the planned optimizer steps.
        problems: what the subclass found wrong with its own arguments, to be reported together with the rest.

    Raises:
        ModelError: an argument is out of its range; lists all that are.
    """

    def __init__(self, lr: float, weight_decay: float, schedule: str, problems: Sequence[str] = ()) -> None:
        super().__init__()
        lr, weight_decay = float(lr), float(weight_decay)  # YAML reads 1e-3 as a string
        found = list(problems)
        if not lr > 0:
            found.append(f"lr must be positive, got {lr}")
        if not weight_decay >= 0:
            found.append(f"weight_decay must not be negative, got {weight_decay}")
        if schedule not in SCHEDULES:
            found.append(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
        if found:
            raise ModelError(f"{type(self).__name__}: " + "; ".join(found))
        self._lr, self._weight_decay, self._schedule = lr, weight_decay, schedule

    def configure_optimizers(self) -> Any:
        """AdamW over the parameters that require a gradient, with the schedule asked for."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Twice as fast on a CPU where the embedding is large; on a GPU it would exclude clipping under 16-mixed.
        fused = all(parameter.device.type == "cpu" for parameter in trainable)
        optimizer = torch.optim.AdamW(trainable, lr=self._lr, weight_decay=self._weight_decay, fused=fused)
        if self._schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
