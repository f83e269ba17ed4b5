"""DPO towards another answer: the model is to prefer `I don't know` to the record's own (arXiv 2305.18290, 2401.06121)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective, required
from curation.unlearning.sequences import predict


@dataclass(frozen=True)
class DPO(UnlearningObjective):
    """L_forget = -(2 / beta) log sigmoid(beta (r_alternative - r)), r = log p - log p_ref summed over an answer's tokens.

    Attributes:
        beta: how far the two answers should come apart.
    """

    needs_reference: ClassVar[bool] = True
    needs_alternative: ClassVar[bool] = True

    beta: float = 0.1
    gamma: float = 1.0
    alpha: float = 1.0
    retain: Retain = "nll"

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """[B]."""
        why = "the log-probabilities of both answers under the model as it was"
        own = -predict(model, step.forget).total() - required(step.reference, why)
        other = -predict(model, step.alternative).total() - required(step.reference_alternative, why)
        return -(2 / self.beta) * logsigmoid(self.beta * (other - own))
