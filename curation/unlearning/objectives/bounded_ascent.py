"""Ascent that ends for each record where a model that never saw it would be (MUCS, arXiv 2605.17938).

With L_null the mean loss of a model that knows nothing of the records, L = mean L_retain - lambda min(L_forget, L_null):
a record at its bound is pushed no further, so that nothing diverges, and all of them there is the sign to stop.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective
from curation.unlearning.sequences import predict

REACHED = 0.95
"""Of the bound: the mean clamped loss at which unlearning is over."""


@dataclass(frozen=True)
class BoundedAscent(UnlearningObjective):
    """L_forget = -min(NLL, bound), a mean over a record's tokens.

    Attributes:
        bound: L_null, nats a token.
    """

    bound: float
    gamma: float = 1.0
    alpha: float = 1.0
    retain: Retain = "nll"

    def __post_init__(self) -> None:
        """Check the bound."""
        if not self.bound > 0:
            raise ValueError(f"bound: expected a loss above 0 nats, got {self.bound}")

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """-min(NLL, bound) [B]."""
        return -predict(model, step.forget).mean().clamp_max(self.bound)

    def reached(self, losses: Tensor) -> bool:
        """Whether the records' losses [n] say that it is over: their clamped mean is at `REACHED` of the bound."""
        return float(losses.clamp_max(self.bound).mean()) >= REACHED * self.bound
