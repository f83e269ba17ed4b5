"""Unlearning as one call: weigh, remember what must be known of the model as it was, train, and see that it changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from curation.training import TrainOptions, train
from curation.unlearning.changes import Changes, weight_changes
from curation.unlearning.module import Records, Refresh, Schedule, Unlearning
from curation.unlearning.objectives import UnlearningObjective
from curation.unlearning.reference import make_reference, read_reference
from curation.unlearning.rows import Rows
from curation.unlearning.shrinking import shrink
from curation.unlearning.weights import Weights

REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class Unlearned:
    """What unlearning did.

    Attributes:
        changes: of the model's weights.
        curve: `Unlearning.curve`.
        weights: of the records at the end, float64 [n]; as given unless they were renewed.
        seconds: spent, over all the runs it took.
        refused: weighings on the way that could not be used; the weights before them were kept.
    """

    changes: Changes
    curve: list[dict[str, float]]
    weights: np.ndarray
    seconds: float
    refused: int = 0


def unlearn(
    model: nn.Module,
    objective: UnlearningObjective,
    forget: Rows,
    retain: Rows,
    weights: Weights,
    options: TrainOptions,
    folder: Path,
    *,
    lr: float,
    alternative: Rows | None = None,
    refresh: Refresh | None = None,
    oracle: nn.Module | None = None,
    fresh: nn.Module | None = None,
    kept: float = 1.0,
    schedule: Schedule = "constant",
    retain_per_record: int = 1,
) -> Unlearned:
    """Unlearn ``forget`` from ``model``, in place; goes on where an earlier call with the same arguments stopped.

    Args:
        model: on the CPU; in evaluation mode afterwards.
        objective: the loss.
        forget: the records; their batch size is the step's.
        retain: rows that stay.
        weights: of the records.
        options: how long, on what device, from what seed.
        folder: of this unlearning alone; ``last.ckpt`` and the reference in it may go once the result is safe.
        lr: learning rate.
        alternative: other answers to the records' questions, for the objectives that need them.
        refresh: renews the weights while it runs.
        oracle: a model that never saw the records, for the objectives that need one; beside the model in memory.
        fresh: a model of the same kind that was never trained; needed with ``kept`` below 1.
        kept: share of the model's weights that it starts with, beside those of ``fresh``, in (0, 1].
        schedule: of the learning rate.
        retain_per_record: rows that stay in a step, for each record in it.

    Raises:
        TrainingError: nothing in the model changed, or as `curation.training.train`.
        ValueError: as many weights as records are needed, or other answers, an oracle or a fresh model.
    """
    if len(weights.values) != len(forget):
        raise ValueError(f"expected one weight a record: got {len(weights.values)} for {len(forget)}")
    if objective.needs_alternative and (alternative is None or len(alternative) != len(forget)):
        raise ValueError(f"{type(objective).__name__} needs another answer to each of the {len(forget)} records")
    if objective.needs_oracle and oracle is None:
        raise ValueError(f"{type(objective).__name__} needs a model that never saw the records")
    if kept != 1 and fresh is None:
        raise ValueError(f"kept: to start with a share of {kept} of the weights, a fresh model is needed for the rest")
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / REFERENCE
    held = retain if objective.retain != "none" else None
    # written before the first step, so that a resumed run does not take the model it has changed for the old one
    asked = oracle if objective.needs_oracle else None
    reference = (
        read_reference(file)
        if file.exists()
        else make_reference(file, model, objective, forget, held, alternative, asked)
    )
    if fresh is not None:
        shrink(model, fresh, kept)  # a resumed run takes its weights from where it was
    module = Unlearning(
        model,
        objective,
        forget,
        retain,
        weights,
        reference,
        lr,
        alternative,
        refresh,
        schedule,
        retain_per_record,
        asked,
    )
    result = train(module, Records(len(forget), forget.size, module.watched_rows), options, folder)
    changes, final = weight_changes(before, model.state_dict()), module.weights.double().cpu().numpy()
    return Unlearned(changes, module.curve, final, result.seconds, module.refused)
