"""Matching an oracle: each record's loss is brought to where a model that never saw it has it (arXiv 2410.23232).

What a model makes of a record that it has never read depends on what else it has read, record by record: seeds agree on it, and
neither held-out records nor other names in the same question foretell it. The oracle is another model trained without the
records, for a fraction of the passes and from a seed of its own: it is not one of the models that verification compares with.
Datamodel matching predicts what such a model says by attribution; here it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective, required
from curation.unlearning.sequences import predict


@dataclass(frozen=True)
class OracleMatching(UnlearningObjective):
    """L_forget = (NLL - NLL_oracle)^2, means over a record's tokens: it pulls from both sides, and ends."""

    needs_oracle: ClassVar[bool] = True

    gamma: float = 1.0
    alpha: float = 8.0
    retain: Retain = "kl"

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """(NLL - NLL_oracle)^2 [B]."""
        target = required(step.target, "the records' losses under the oracle")
        return (predict(model, step.forget).mean() - target).square()
