"""Losses of whole rows and of their tokens, alike for language models and classifiers.

Axes: B rows of a batch, P predictions of a row (T tokens of a text; 1 for a classifier), V what is chosen among (the
vocabulary, or K classes).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorif_core.objectives import IGNORED, Batch, call, logits_of, split_batch


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for the rows of a batch.

    Attributes:
        logits: float32 [B, P, V], or float64 of a model that is.
        targets: int64 [B, P], `IGNORED` where nothing is predicted (a prompt, padding).
        hidden: the hidden states [B, P, d] that were asked for; None where none were.
    """

    logits: Tensor
    targets: Tensor
    hidden: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Where something is predicted, bool [B, P]."""
        return self.targets != IGNORED

    @property
    def tokens(self) -> Tensor:
        """How many predictions count in each row, int64 [B], at least 1."""
        return self.mask.sum(1).clamp_min(1)

    def losses(self) -> Tensor:
        """Negative log-likelihood of each prediction [B, P], zero where nothing is predicted."""
        found = functional.cross_entropy(
            self.logits.flatten(0, 1), self.targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return found.view_as(self.targets)

    def total(self) -> Tensor:
        """Negative log-likelihood of each row [B], summed over its predictions."""
        return self.losses().sum(1)

    def mean(self) -> Tensor:
        """Negative log-likelihood of each row [B] a prediction."""
        return self.total() / self.tokens


def predict(model: nn.Module, batch: Batch) -> Predictions:
    """What ``model`` predicts for a batch, and what it should.

    Args:
        model: returns logits [B, T, V] for a batch of texts (a dict with ``input_ids`` and ``labels``), [B, K] for one of
            ``(inputs, codes)``, as a tensor or under ``.logits``.
        batch: the rows. Labels of texts are not shifted: position t predicts label t + 1.

    Raises:
        ValueError: no labels, or logits that do not fit them.
    """
    inputs, labels = split_batch(batch)
    if labels is None:
        raise ValueError("expected a batch with labels: (inputs, codes) or a dict with labels, got none")
    logits = logits_of(call(model, inputs))
    if logits.dtype != torch.float64:
        logits = logits.float()  # a half-precision model's losses are summed in float32
    if logits.ndim == 2 and labels.ndim == 1 and len(logits) == len(labels):
        return Predictions(logits.unsqueeze(1), labels.long().unsqueeze(1))
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            "expected logits [B, T, V] for labels [B, T] or logits [B, K] for class codes [B], "
            f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        )
    # The last position predicts nothing; ignoring it costs less than copying the other logits.
    return Predictions(logits, functional.pad(labels[:, 1:].long(), (0, 1), value=IGNORED))


@dataclass(frozen=True)
class TokenScores:
    """How likely a model finds the targets of a batch, on the CPU.

    Attributes:
        log_p: log-probability of each target, float32 [B, P]; zero where nothing is predicted.
        mean: mean of the log-probability over V under the model's own probabilities, float32 [B, P].
        std: its standard deviation, likewise.
        correct: whether the target is the likeliest of all, bool [B, P].
        mask: where something is predicted, bool [B, P].
    """

    log_p: Tensor
    mean: Tensor
    std: Tensor
    correct: Tensor
    mask: Tensor


@torch.no_grad()
def token_scores(model: nn.Module, batch: Batch) -> TokenScores:
    """Token by token: what membership attacks and memorisation measures are made of.

    Raises:
        ValueError: as `predict`.
    """
    found = predict(model, batch)
    mask = found.mask
    log_p = found.logits.log_softmax(-1)  # [B, P, V]
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    variance = (p * log_p.square()).sum(-1) - mean.square()
    target = log_p.gather(-1, found.targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    zero = torch.zeros_like(mean)
    return TokenScores(
        log_p=target.where(mask, zero).cpu(),
        mean=mean.where(mask, zero).cpu(),
        std=variance.clamp_min(0).sqrt().where(mask, zero).cpu(),
        correct=((found.logits.argmax(-1) == found.targets) & mask).cpu(),
        mask=mask.cpu(),
    )
