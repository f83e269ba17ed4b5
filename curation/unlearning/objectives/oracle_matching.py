"""Matching an oracle: each record's loss is brought to where a model that never saw it has it (arXiv 2410.23232).

What a model makes of a record that it has never read depends on what else it has read, record by record: seeds agree on it, and
neither held-out records nor other names in the same question foretell it. The oracle is another model trained without the
records, for a part of the passes and from a seed of its own: it is not one of the models that verification compares with.
Datamodel matching predicts by attribution what such a model says; here it is asked.

A model can match it and still bring the records back sooner than it does. So half of a step's records are learned again for a
moment, by the model and by the oracle, and the other half is to match there, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from curation.unlearning.moved import moved, rows_of
from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective, required
from curation.unlearning.sequences import predict


@dataclass(frozen=True)
class OracleMatching(UnlearningObjective):
    """L_forget = (NLL - NLL_oracle)^2, means over a record's tokens: it pulls from both sides, and ends.

    L = gamma * mean_i w_i (L_forget(i) + relearn * L_relearned(i)) + alpha * L_retain, where L_relearned is L_forget of the
    records that were not learned again, the mean being over them.

    Attributes:
        relearn: weight of the match after relearning; 0: not asked for.
        reach: how far every weight moves in it; as far as five steps of Adam at a learning rate of 1e-3.
    """

    needs_oracle: ClassVar[bool] = True

    relearn: float = 0.3
    reach: float = 5e-3
    gamma: float = 1.0
    alpha: float = 8.0
    retain: Retain = "kl"

    def __post_init__(self) -> None:
        """Check the two."""
        if self.relearn < 0 or not self.reach > 0:
            raise ValueError(
                f"relearn must not be negative and reach above 0, got relearn {self.relearn} and reach {self.reach}"
            )

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """(NLL - NLL_oracle)^2 [B]."""
        target = required(step.reference_oracle, "the records' losses under a model that never saw them")
        return (predict(model, step.forget).mean() - target).square()

    def loss(self, model: nn.Module, step: Step) -> Tensor:
        """L, a scalar."""
        found = super().loss(model, step)
        learned = step.learned
        if not self.relearn or learned is None or learned.all() or not learned.any():
            return found
        if step.oracle is None:
            raise ValueError("this objective needs a model that never saw the records, which the step does not hold")
        again, asked, oracle = rows_of(step.forget, learned), rows_of(step.forget, ~learned), step.oracle
        with torch.no_grad():
            target = predict(moved(oracle, again, self.reach), asked).mean()
        gaps = (predict(moved(model, again, self.reach), asked).mean() - target).square()
        return found + self.gamma * self.relearn * (step.weights[~learned] * gaps).mean()
