"""What the shipped language models share: the loss on answers, the logged figures and greedy generation.

Axes: B rows of a batch, T tokens of a row, V vocabulary. A batch is a dict of int64 tensors [B, T], padded on the right:
``input_ids``, ``attention_mask`` (1 = token) and ``labels`` (-100 on prompt and padding, not shifted).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from curation.models.answers import answer_scores
from curation.models.evaluation import measuring
from curation.models.optimised import OptimisedModule


class LanguageModel(OptimisedModule):
    """A LightningModule whose ``forward`` maps token ids to logits [B, T, V], trained on the answers of questions.

    The loss is the mean over rows of each row's mean negative log-likelihood an answer token, so that a row counts as much
    as any other, however long its answer.

    Args:
        lr: learning rate of AdamW, at the start when it follows a schedule.
        weight_decay: decoupled weight decay of AdamW.
        schedule: ``"constant"``, or ``"cosine"`` to bring the learning rate to zero over the planned optimizer steps.
        problems: what the subclass found wrong with its own arguments, to be reported together with the rest.

    Raises:
        ModelError: an argument is out of its range; lists all that are.
    """

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]: those at t are for token t + 1."""

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of one batch, logged as ``train_loss``."""
        loss = answer_scores(self, batch).loss.mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["labels"]), sync_dist=True)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_exact``, means over the rows."""
        scores = answer_scores(self, batch)
        figures = {"val_loss": scores.loss.mean(), "val_exact": scores.exact.float().mean()}
        self.log_dict(figures, batch_size=len(scores.loss), sync_dist=True)

    def continued(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_id: int, pad_id: int
    ) -> list[list[int]]:
        """What comes after each of one batch of prompts, the likeliest token at each place; as :func:`generate`.

        Limitations: every step runs the whole batch again; nothing of it is kept.
        """
        device = next(self.parameters()).device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        room = [torch.tensor([*prompt, *[pad_id] * max_new_tokens]) for prompt in prompts]
        ids = pad_sequence(room, batch_first=True, padding_value=pad_id).to(device)
        places = torch.arange(ids.shape[1], device=device)
        rows = torch.arange(len(prompts), device=device)
        running = torch.ones(len(prompts), dtype=torch.bool, device=device)
        for step in range(max_new_tokens):
            last = lengths[running] + step  # where each row's next token goes
            used = int(last.max())
            mask = (places[:used] < last[:, None]).long()
            logits = self(ids[running, :used], mask)  # [B, T, V]
            best = logits[torch.arange(len(last), device=device), last - 1].argmax(-1)  # [B, V] -> [B]
            ids[rows[running], last] = best
            running[rows[running]] = best != end_id
            if not running.any():
                break
        found = [
            row[length : length + max_new_tokens] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)
        ]
        return [row[: row.index(end_id)] if end_id in row else row for row in found]


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    batch_size: int = 64,
) -> list[list[int]]:
    """What ``model`` goes on with after each prompt: at each place the likeliest token, the same in every batch.

    Args:
        model: a :class:`LanguageModel`, used in eval mode where it lies; its modes are left as they were.
        prompts: ids of each, at least one.
        max_new_tokens: of one continuation, its end not counted when it comes later.
        end_id: of the token that ends one.
        pad_id: of what fills a batch.
        batch_size: prompts at once, those of about one length together.

    Returns:
        For each prompt the ids of its continuation, without the end.

    Raises:
        ValueError: a prompt is empty.
    """
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("generate: a prompt is empty; expected one token or more in each")
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    found: list[list[int]] = [[] for _ in prompts]
    with measuring(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            answers = model.continued([prompts[row] for row in rows], max_new_tokens, end_id, pad_id)  # type: ignore[operator]
            for row, answer in zip(rows, answers, strict=True):
                found[row] = answer
    return found
