"""Whether what stays is kept: a model that forgot everything has forgotten the records, too.

A model retrained without the records shows how much of the rest can be kept, so that its figures, not those of the model as
it was, are what an unlearned model must come near. One-sided: to keep more than they is no failure. Where none was retrained,
the model as it was is the only one that there is to compare with; it may have kept more than can be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.unlearning.verification.memorisation import probability
from curation.unlearning.verification.panel import Panel


@dataclass(frozen=True)
class Kept:
    """One figure of the rows that stay, each a share in [0, 1].

    Attributes:
        figure: ``exact`` (answers given token for token; a classifier's accuracy), or ``probability`` (of the right answer,
            geometric mean over its tokens, mean over rows).
        before: of the model as it was.
        after: of the unlearned model.
        retrained: mean over the retrained models; None where there is none.
        allowed: how far ``after`` may lie below these, or below ``before`` where there is none, declared before the run.
    """

    figure: str
    before: float
    after: float
    retrained: float | None
    allowed: float

    @property
    def expected(self) -> float:
        """Of the retrained models, or of the model as it was where there is none."""
        return self.before if self.retrained is None else self.retrained

    @property
    def whose(self) -> str:
        """Whose figure that is, in words."""
        return "former model's" if self.retrained is None else "retrained models'"

    @property
    def drop(self) -> float:
        """How far below that the unlearned model is; negative: above it."""
        return self.expected - self.after

    @property
    def passed(self) -> bool:
        """Whether no more was lost than allowed."""
        return self.drop <= self.allowed


def kept(before: Panel, after: Panel, references: Sequence[Panel], allowed: float) -> list[Kept]:
    """Both figures of the rows that stay, under the model before and after, and under the retrained ones if there are any."""
    found = []
    for name, figure in (("exact", _exact), ("probability", _probability)):
        retrained = float(np.mean([figure(panel) for panel in references])) if references else None
        found.append(Kept(name, figure(before), figure(after), retrained, allowed))
    return found


def _exact(panel: Panel) -> float:
    return panel.exact_retain


def _probability(panel: Panel) -> float:
    return float(probability(panel.losses_retain).mean())
