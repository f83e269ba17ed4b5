"""Gradient difference: ascent on the records, descent on the rows that stay."""

from __future__ import annotations

from dataclasses import dataclass

from curation.unlearning.objectives.ascent import Ascent
from curation.unlearning.objectives.base import Retain


@dataclass(frozen=True)
class Difference(Ascent):
    """L_forget = -NLL; what stays is held by its own loss, or by KL to the model as it was."""

    alpha: float = 1.0
    retain: Retain = "nll"
