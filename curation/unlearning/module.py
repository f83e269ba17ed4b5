"""The LightningModule that unlearns, run by `curation.training.train` as every other training is.

Axes: n records, m rows that stay, B of either in a step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from curation.models.kinds import kind_of
from curation.unlearning.alignment import Alignment
from curation.unlearning.objectives import BoundedAscent, Step, UnlearningObjective
from curation.unlearning.reference import Reference
from curation.unlearning.rows import Rows
from curation.unlearning.sequences import predict
from curation.unlearning.weights import UnevenWeightsError, Weights, guard_weights
from lorif_core.capture import frozen
from lorif_core.objectives import Batch, to_device

logger = logging.getLogger(__name__)

Schedule = Literal["constant", "cosine"]
WATCHED = 64
"""Rows that stay whose loss is followed."""


@dataclass(frozen=True)
class Refresh:
    """How `guard-dynamic` weighs the records anew while they are unlearned.

    Attributes:
        every: optimizer steps between two scorings.
        temperature: of the weights.
        score: alignment of the records and the rows that stay under the model as it is.
    """

    every: int
    temperature: float
    score: Callable[[nn.Module], Alignment]


class Unlearning(LightningModule):
    """One step: a batch of records, each with its weight, beside random rows that stay.

    Args:
        model: changed in place.
        objective: the loss of a step.
        forget: the records.
        retain: rows that stay.
        weights: of the records.
        reference: what the objective needs of the model as it was.
        lr: learning rate of AdamW, without weight decay: what stays is to stay.
        alternative: another answer to each record's question, where the objective needs it.
        refresh: how the weights are renewed; None: they stay.
        schedule: ``"constant"``, or ``"cosine"`` to bring the learning rate to zero over the planned optimizer steps.
        retain_per_record: rows that stay in a step, for each record in it.
        oracle: a model that never saw the records, where the objective needs one; no part of this module.

    Attributes:
        curve: at the start and after each epoch, ``step``, ``forget_loss`` and ``retain_loss`` (of `WATCHED` rows), nats a token.
        refused: weighings of `Refresh` that left too few records with any weight; the weights before them were kept.
    """

    weights: Tensor
    """Of the records, float32 [n]."""

    def __init__(
        self,
        model: nn.Module,
        objective: UnlearningObjective,
        forget: Rows,
        retain: Rows,
        weights: Weights,
        reference: Reference,
        lr: float,
        alternative: Rows | None = None,
        refresh: Refresh | None = None,
        schedule: Schedule = "constant",
        retain_per_record: int = 1,
        oracle: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.reference = model, objective, reference
        self.forget_rows, self.retain_rows, self.alternative_rows = forget, retain, alternative
        self.watched_rows = replace(retain, positions=evenly_spaced(retain.positions, WATCHED))
        self.refresh, self._lr, self._schedule, self._retain_per_record = refresh, lr, schedule, retain_per_record
        self._oracle = None if oracle is None else (oracle.eval(),)  # in a tuple, out of checkpoints and optimizer
        self.curve: list[dict[str, float]] = []
        self.refused = 0
        self.register_buffer("weights", torch.from_numpy(weights.values).float())
        self.save_hyperparameters({"objective": repr(objective), "lr": lr, "weights": weights.values.tolist()})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        return self.model(*args, **kwargs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The objective's loss of the records numbered ``batch[0]`` [B] and of random rows that stay."""
        if self.refresh is not None and self.global_step and self.global_step % self.refresh.every == 0:
            self._renew(self.refresh)
        which = batch[0].cpu()
        loss = self.objective.loss(self.model, self._step(which))
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(which))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val_loss`` and the rate of the rows watched, for the curve and the history alike."""
        found = predict(self.model, batch)
        right = (found.logits.argmax(-1) == found.targets) | ~found.mask  # [B, P]
        figures = {"val_loss": found.mean().mean(), f"val_{kind_of(batch).rate}": right.all(1).float().mean()}
        self.log_dict(figures, batch_size=len(right))

    def on_train_start(self) -> None:
        """Note where it begins."""
        if not self.curve:
            self._note()

    def on_train_epoch_end(self) -> None:
        """Note how far it is; end where a bounded ascent has brought the records to its bound."""
        losses = self._note()
        if isinstance(self.objective, BoundedAscent) and self.objective.reached(losses):
            logger.info("the records are at %.3f nats of %.3f: done", float(losses.mean()), self.objective.bound)
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the curve."""
        checkpoint["curve"] = [dict(point) for point in self.curve]
        checkpoint["refused"] = self.refused

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the curve."""
        self.curve, self.refused = checkpoint["curve"], checkpoint["refused"]

    def configure_optimizers(self) -> Any:
        """AdamW over what requires a gradient, with the schedule."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self._lr, weight_decay=0.0)
        if self._schedule == "constant":
            return optimizer
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}

    def losses(self, rows: Rows) -> Tensor:
        """Loss of each row [rows], a mean over its tokens, on the CPU."""
        with frozen(self.model), torch.no_grad():
            return torch.cat([predict(self.model, self._placed(batch)).mean().cpu() for batch in rows])

    def _step(self, which: Tensor) -> Step:
        reference, records = self.reference, which.tolist()
        count = len(which) * self._retain_per_record
        staying = torch.randint(len(self.retain_rows), (count,))  # of the epoch's own seed
        retain = self._placed(self.retain_rows.batch(staying.tolist())) if self.objective.retain != "none" else None
        known = None
        if retain is not None and reference.retain is not None:
            known = self._placed(reference.of_retained(staying, _mask(retain)))
        alternative = self.alternative_rows.batch(records) if self.alternative_rows else None
        return Step(
            forget=self._placed(self.forget_rows.batch(records)),
            weights=self.weights[which],
            retain=retain,
            alternative=self._placed(alternative),
            reference=None if reference.forget is None else self._placed(reference.forget[which]),
            reference_alternative=None if reference.alternative is None else self._placed(reference.alternative[which]),
            reference_retain=known,
            oracle=None if self._oracle is None else self._oracle[0].to(self.device),
            reference_oracle=None if reference.oracle is None else self._placed(reference.oracle[which]),
            learned=None if self._oracle is None else self._placed(torch.randperm(len(which)) < len(which) // 2),
        )

    def _note(self) -> Tensor:
        """Losses of the records [n], their mean and that of some rows that stay added to the curve."""
        losses = self.losses(self.forget_rows)
        measured = self.trainer.callback_metrics.get("val_loss")  # after an epoch; at the start nothing is
        retain = self.losses(self.watched_rows).mean() if measured is None else measured
        self.curve.append({"step": self.global_step, "forget_loss": float(losses.mean()), "retain_loss": float(retain)})
        return losses

    def _renew(self, refresh: Refresh) -> None:
        alignment = refresh.score(self.model)
        try:
            found = guard_weights(alignment.values, refresh.temperature, alignment.opposition)
        except UnevenWeightsError as error:  # half of an unlearning is worth more than none
            self.refused += 1
            logger.warning("step %d: the weights stay as they were: %s", self.global_step, error)
            return
        self.weights.copy_(torch.from_numpy(found.values))

    def _placed(self, batch: Any) -> Any:
        return to_device(batch, self.device)


class Records(LightningDataModule):
    """The numbers 0 to n - 1 of the records, in a new order every epoch; validated on rows that stay."""

    def __init__(self, count: int, batch_size: int, watched: Rows) -> None:
        super().__init__()
        self._rows, self._batch_size, self._watched = TensorDataset(torch.arange(count)), batch_size, watched

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of numbers [B], shuffled."""
        return DataLoader(self._rows, self._batch_size, shuffle=True, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of rows that stay."""
        rows = self._watched
        return DataLoader(Subset(rows.dataset, rows.positions.tolist()), rows.size, collate_fn=rows.collate)


def evenly_spaced(positions: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the positions, evenly spaced."""
    return positions[np.unique(np.linspace(0, len(positions) - 1, most, dtype=np.int64))]


def _mask(batch: Batch) -> Tensor:
    """Where a batch predicts something, bool [B, P]; one prediction a row of a classifier."""
    if not isinstance(batch, dict):
        return torch.ones(len(batch[1]), 1, dtype=torch.bool)
    labels = batch["labels"][:, 1:] != -100
    return torch.nn.functional.pad(labels, (0, 1), value=False)
