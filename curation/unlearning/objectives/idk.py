"""Learning another answer to the records' questions: `I don't know` (TOFU's PO baseline, arXiv 2401.06121)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective
from curation.unlearning.sequences import predict


@dataclass(frozen=True)
class IDK(UnlearningObjective):
    """L_forget = NLL of the other answer, a mean over its tokens.

    It teaches to refuse, and does not push the record's own answer: verification tells the two apart.
    """

    needs_alternative: ClassVar[bool] = True

    gamma: float = 1.0
    alpha: float = 1.0
    retain: Retain = "nll"

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """[B]."""
        return predict(model, step.alternative).mean()
