"""SimNPO: NPO without a reference, on the mean over tokens, so that long answers are not favoured (arXiv 2410.07163)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective
from curation.unlearning.sequences import predict


@dataclass(frozen=True)
class SimNPO(UnlearningObjective):
    """L_forget = -(2 / beta) log sigmoid(beta (NLL - delta)), NLL a mean over a record's tokens.

    Attributes:
        beta: sharpness.
        delta: the loss in nats a token from which a record counts as forgotten.
    """

    beta: float = 4.5
    delta: float = 0.0
    gamma: float = 0.125
    alpha: float = 1.0
    retain: Retain = "nll"

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """[B]."""
        return -(2 / self.beta) * logsigmoid(self.beta * (predict(model, step.forget).mean() - self.delta))
