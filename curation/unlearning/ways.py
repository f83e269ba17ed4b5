"""Alignments under a model as it is, without an index, in the way that was asked for."""

from __future__ import annotations

from typing import Literal

from torch import nn

from curation.unlearning.activations import by_activations, is_covered, plan_of
from curation.unlearning.alignment import Alignment, AlignmentError, by_forward_mode, by_two_forwards
from curation.unlearning.rows import Rows
from lorif_core.gradients import GradientPlan

PassWay = Literal["auto", "activations", "two_forwards", "forward_mode"]


class Aligner:
    """Scores one model, as often as it is called: how its gradients are taken is found out once.

    Args:
        forget: the records.
        retain: rows that stay.
        way: auto: by activations where every layer of the model is one that `lorif_core` attributes, else by two forwards.
        cosine: divide by the norms of both gradients, which activations alone can; None: where it is by activations.

    Raises:
        AlignmentError: a cosine in another way.
    """

    def __init__(self, forget: Rows, retain: Rows, way: PassWay = "auto", *, cosine: bool | None = False) -> None:
        if cosine and way not in ("auto", "activations"):
            raise AlignmentError(f"a cosine needs each record's own gradient, which {way} has not: take activations")
        self.forget, self.retain, self.cosine = forget, retain, cosine
        self._way = "activations" if cosine else way
        self._plan: GradientPlan | None = None

    def __call__(self, model: nn.Module) -> Alignment:
        """Of the records with the rows that stay, under the model as it is; it is left so.

        Raises:
            AlignmentError: as the way's own function.
        """
        if self._way == "auto":
            self._way = "activations" if is_covered(model) else "two_forwards"
        if self._way == "activations":
            self._plan = self._plan or plan_of(model, self.forget)
            return by_activations(model, self.forget, self.retain, cosine=self.cosine is not False, plan=self._plan)
        return (by_two_forwards if self._way == "two_forwards" else by_forward_mode)(model, self.forget, self.retain)
