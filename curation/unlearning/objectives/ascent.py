"""Gradient ascent on the records, and nothing else: the baseline that everything is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective
from curation.unlearning.sequences import predict


@dataclass(frozen=True)
class Ascent(UnlearningObjective):
    """L_forget = -NLL, a mean over a record's tokens. It has no lower bound: stop early, or take `BoundedAscent`."""

    gamma: float = 1.0
    alpha: float = 0.0
    retain: Retain = "none"

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """-NLL [B]."""
        return -predict(model, step.forget).mean()
