"""What every unlearning objective is: a loss of each record, weighed, and a term that holds on to the rest.

Axes: B records of a batch, P predictions of a row, V what is chosen among.

    L = gamma * mean_i w_i L_forget(i) + alpha * L_retain

The weight multiplies the loss of a whole record, not of a batch. A method is one small file that says what L_forget is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from curation.unlearning.sequences import Predictions, predict
from lorif_core.objectives import Batch

Retain = Literal["none", "nll", "kl"]


@dataclass(frozen=True)
class Step:
    """What one optimizer step sees.

    Attributes:
        forget: a batch of records.
        weights: theirs, float32 [B], mean about one.
        retain: a batch of rows that stay; None where the objective needs none.
        alternative: the records' questions with another answer (`I don't know`); None likewise.
        reference: log-probability of each record under the model as it was [B]; None likewise.
        reference_alternative: that of the other answers [B].
        reference_retain: what `retain_reference` gave for the rows that stay, under the model as it was.
        oracle: a model that never saw the records; None likewise.
        reference_oracle: loss of each record under it [B], a mean over its tokens; None likewise.
        learned: which half of the records is learned again, bool [B]; None likewise.
    """

    forget: Batch
    weights: Tensor
    retain: Batch | None = None
    alternative: Batch | None = None
    reference: Tensor | None = None
    reference_alternative: Tensor | None = None
    reference_retain: Tensor | None = None
    oracle: nn.Module | None = None
    reference_oracle: Tensor | None = None
    learned: Tensor | None = None


class UnlearningObjective(ABC):
    """The loss of a step; subclasses are frozen dataclasses of their options.

    Attributes:
        gamma: weight of the records' term.
        alpha: weight of the term of what stays.
        retain: that term: `nll`, `kl` (from the model as it was to the model as it is), or `none`.
    """

    gamma: float
    alpha: float
    retain: Retain
    needs_reference: ClassVar[bool] = False
    """Of the records, under the model as it was."""
    needs_alternative: ClassVar[bool] = False
    """Another answer to each record's question."""
    needs_oracle: ClassVar[bool] = False
    """A model that never saw the records."""

    def problems(self, model: nn.Module) -> list[str]:
        """What it needs of the model and the model has not."""
        return []

    @abstractmethod
    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """L_forget of each record [B]; it falls as the record is forgotten."""

    def loss(self, model: nn.Module, step: Step) -> Tensor:
        """L, a scalar."""
        forget = self.gamma * (step.weights * self.forget_losses(model, step)).mean()
        if self.retain == "none" or step.retain is None:
            return forget
        return forget + self.alpha * self._retain_loss(model, step)

    def retain_reference(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """What has to be known of the model as it was for rows that stay: [B', P, V or d], None where nothing has.

        Only what lies where a token is predicted is kept.
        """
        return predict(model, batch).logits.log_softmax(-1) if self.retain == "kl" else None

    def _retain_loss(self, model: nn.Module, step: Step) -> Tensor:
        found = predict(model, step.retain)
        if self.retain == "nll":
            return found.mean().mean()
        reference = required(
            step.reference_retain, "the log-probabilities of the rows that stay under the model as it was"
        )
        return kl_from(reference, found).mean()


def kl_from(reference: Tensor, found: Predictions) -> Tensor:
    """KL(p_ref || p) of each row [B], a mean over its predictions; neither prompt nor padding counts.

    Args:
        reference: log-probabilities [B, P, V] of the model as it was.
        found: what the model predicts now.
    """
    log_p = found.logits.log_softmax(-1)
    each = functional.kl_div(log_p, reference.to(log_p.dtype), log_target=True, reduction="none").sum(-1)  # [B, P]
    return (each * found.mask).sum(1) / found.tokens


def required(tensor: Tensor | None, name: str) -> Tensor:
    """What a step must hold for an objective that says it needs it.

    Raises:
        ValueError: it is not there.
    """
    if tensor is None:
        raise ValueError(f"this objective needs {name}, which the step does not hold")
    return tensor
