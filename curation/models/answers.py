"""How well a language model knows answers: their loss, and the share it gives word for word.

Axes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from curation.errors import ModelError
from curation.models.evaluation import PROBED_ROWS, UNUSABLE, logits_of, measuring, wilson
from lorif_core.objectives import IGNORED

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class AnswerScores:
    """Scores of a batch.

    Attributes:
        loss: mean negative log-likelihood (nats) of each row's answer tokens, its end among them, float32 [B].
        exact: whether each of them is the likeliest after those before it, bool [B]: then, and only then, greedy
            generation gives the answer, token for token.
    """

    loss: Tensor
    exact: Tensor


def answer_scores(model: nn.Module, batch: Batch) -> AnswerScores:
    """Scores of the answers in ``batch``, with the gradients and in the mode of the caller."""
    logits = logits_of(model(batch["input_ids"], attention_mask=batch["attention_mask"]))  # [B, T, V]
    labels = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # those at t predict token t + 1
    # Only the answers' positions: a large vocabulary's float32 logits of prompts are most of the memory.
    asked = labels != IGNORED  # [B, T]
    chosen, wanted = logits[asked].float(), labels[asked]  # [n, V], [n]
    losses = functional.cross_entropy(chosen, wanted, reduction="none")  # [n]
    rows = asked.nonzero()[:, 0]
    tokens = asked.sum(1)  # [B]
    total = losses.new_zeros(len(labels)).index_add(0, rows, losses)
    wrong = torch.zeros_like(tokens).index_add(0, rows, (chosen.argmax(-1) != wanted).long())
    return AnswerScores(total / tokens.clamp(min=1), wrong == 0)


def evaluate_answers(model: nn.Module, loader: Iterable[Batch]) -> dict[str, float]:
    """Measure ``model`` in eval mode, without gradients, on every row of ``loader``; its modes are left as they were.

    Args:
        model: maps ids to logits [B, T, V], or to an object that has them as ``.logits``; used where it lies.
        loader: yields batches of questions (``curation.data.Questions``).

    Returns:
        ``exact`` in [0, 1] (answers that greedy generation gives token for token), ``exact_low`` and ``exact_high`` (95 %
        Wilson interval), ``loss`` (mean over rows of the mean over answer tokens, nats) and ``n`` (rows).

    Raises:
        ValueError: the loader has no rows.
    """
    exact, loss, rows = 0, 0.0, 0
    with measuring(model) as device:
        for batch in loader:
            scores = answer_scores(model, {name: values.to(device) for name, values in batch.items()})
            exact += int(scores.exact.sum())
            loss += float(scores.loss.double().sum())
            rows += len(scores.loss)
    if rows == 0:
        raise ValueError("evaluate: the loader has no rows; the share of exact answers is undefined")
    low, high = wilson(exact, rows)
    return {"exact": exact / rows, "exact_low": low, "exact_high": high, "loss": loss / rows, "n": rows}


def check_answers(model: nn.Module, batch: Batch) -> None:
    """Find out, on the first rows of a batch, whether ``model`` is a language model of the batch's tokens.

    Raises:
        ModelError: ``model`` fails on the ids, or makes anything but logits [B, T, V] with V above every id.
    """
    ids, mask = batch["input_ids"][:PROBED_ROWS], batch["attention_mask"][:PROBED_ROWS]
    name, least = type(model).__name__, int(batch["input_ids"].max()) + 1
    try:
        with measuring(model) as device:
            logits = logits_of(model(ids.to(device), attention_mask=mask.to(device)))
    except UNUSABLE as error:
        raise ModelError(f"{name} fails on token ids {list(ids.shape)}: {type(error).__name__}: {error}") from error
    shape = list(logits.shape) if isinstance(logits, Tensor) else [type(logits).__name__]
    if len(shape) != 3 or shape[:2] != list(ids.shape) or shape[2] < least:
        raise ModelError(
            f"{name}: expected logits of shape {[*ids.shape, 'vocabulary']} with at least {least} tokens in the vocabulary; got "
            f"{shape}. Questions need a language model, such as curation.models.TinyGPT"
        )
