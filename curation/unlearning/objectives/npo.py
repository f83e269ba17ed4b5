"""Negative preference optimisation: the records' old log-probability is what they should fall below (arXiv 2404.05868)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective, required
from curation.unlearning.sequences import predict


@dataclass(frozen=True)
class NPO(UnlearningObjective):
    """L_forget = -(2 / beta) log sigmoid(-beta (log p - log p_ref)), log p summed over a record's tokens.

    Attributes:
        beta: how soon a record that has fallen below its old log-probability is left alone; ascent in the limit of 0.
    """

    needs_reference: ClassVar[bool] = True

    beta: float = 0.1
    gamma: float = 1.0
    alpha: float = 1.0
    retain: Retain = "nll"

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """[B]."""
        log_p = -predict(model, step.forget).total()
        ratio = log_p - required(step.reference, "the records' log-probabilities under the model as it was")
        return -(2 / self.beta) * logsigmoid(-self.beta * ratio)
