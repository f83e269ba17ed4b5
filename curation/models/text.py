"""Texts, as ids a data module made of them: mean of hashed n-gram embeddings, or any Hugging Face encoder.

Axes: B rows, T token ids of a row (padded), D width of the pooled text, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curation.errors import ModelError
from curation.huggingface import HASHED, pretrained
from curation.models.base import Classifier, dense, width_problems


class TextClassifier(Classifier):
    """Classifies texts given as token ids [B, T] int64.

    ``encoder="hashed"`` needs nothing downloaded: every id is a hash bucket of a word or n-gram, its embedding is
    learnt, the embeddings of a text are averaged. Any other name is a Hugging Face encoder (a name on the hub or a local
    folder), fine-tuned whole, its last hidden states averaged; the ids must then come from that encoder's own
    tokenizer, so name the same one as ``tokenizer`` of the data. Padding is left out of both means.

    Limitations: a checkpoint holds the weights of a Hugging Face encoder but not its configuration, so the name or
    folder must be there when it is loaded. Such an encoder has dropout while it trains, as it was designed.

    Args:
        num_classes: K.
        encoder: ``"hashed"``, or the name or folder of a Hugging Face encoder.
        vocab_buckets: how many ids the data module makes; an encoder must know at least as many.
        pad_id: the id of padding. None: 0 for hashed, the encoder's own otherwise.
        max_tokens: T where it is fixed; an encoder must take that many.
        tokenizer: what made the ids, ``"hashed"`` or a tokenizer's name or folder; must be the same as ``encoder``. None:
            not checked, for a tokenizer of another name that makes the same ids.
        dim: D for hashed; an encoder has its own.
        hidden: widths of ReLU layers between the pooled text and the head; none by default, the best of what was tried.
        lr: learning rate of AdamW. None: 3e-3 for hashed, 5e-5 for an encoder.
        weight_decay: weight decay of AdamW. None: 1 for hashed, which memorises a small set otherwise; 0.01 for an encoder.
        schedule: ``"constant"`` or ``"cosine"``.

    Raises:
        ModelError: an argument is out of its range, transformers is not installed, there is no such encoder, or it does
            not fit the ids.
    """

    folder_arguments = ("encoder", "tokenizer")

    def __init__(
        self,
        num_classes: int,
        encoder: str = HASHED,
        vocab_buckets: int | None = None,
        pad_id: int | None = None,
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        dim: int = 64,
        hidden: Sequence[int] = (),
        lr: float | None = None,
        weight_decay: float | None = None,
        schedule: str = "constant",
    ) -> None:
        num_classes, encoder, hidden = int(num_classes), str(encoder), [int(units) for units in hidden]
        hashed = encoder == HASHED
        if hashed:
            vocab_buckets = 16384 if vocab_buckets is None else vocab_buckets
            pad_id = 0 if pad_id is None else pad_id
        lr = (3e-3 if hashed else 5e-5) if lr is None else lr
        weight_decay = (1.0 if hashed else 0.01) if weight_decay is None else weight_decay
        problems = width_problems(hidden)
        if tokenizer is not None and tokenizer != encoder:
            problems.append(
                f"encoder is {encoder!r}, but the ids were made by {tokenizer!r}: set `tokenizer: {encoder}` in the "
                "data's init_args, or `tokenizer: null` in the model's where both make the same ids"
            )
        if dim < 1:
            problems.append(f"dim must be at least 1, got {dim}")
        if vocab_buckets is not None and vocab_buckets < 2:
            problems.append(f"vocab_buckets must be at least 2, got {vocab_buckets}")
        if hashed and not 0 <= (pad_id or 0) < (vocab_buckets or 0):
            problems.append(f"pad_id must be one of the {vocab_buckets} buckets, got {pad_id}")
        super().__init__(num_classes, lr, weight_decay, schedule, problems)

        if hashed:
            self.encoder: nn.Module = nn.Embedding(int(vocab_buckets or 0), dim, padding_idx=pad_id)
            width = dim
        else:
            self.encoder = _encoder(encoder)
            config: Any = self.encoder.config
            pad_id = config.pad_token_id if pad_id is None else pad_id
            _check_ids(encoder, config, vocab_buckets, pad_id, max_tokens)
            width = int(config.hidden_size)
        self.hashed, self.pad_id = hashed, int(pad_id or 0)
        self.save_hyperparameters(ignore=["problems", "tokenizer", "max_tokens"])
        self.features = dense(width, hidden)
        self.head = nn.Linear(hidden[-1] if hidden else width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, K] of ``ids`` [B, T] int64, padded with ``pad_id``."""
        mask = ids != self.pad_id
        output = self.encoder(ids) if self.hashed else self.encoder(input_ids=ids, attention_mask=mask.long())
        states = output if self.hashed else output.last_hidden_state
        weights = mask.to(states.dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        pooled = torch.einsum("bt,btd->bd", weights, states)  # [B, T] x [B, T, D] -> [B, D]
        logits: Tensor = self.head(self.features(pooled))
        return logits


def _encoder(name: str) -> nn.Module:
    """The Hugging Face encoder called ``name`` in float32, without the pooler that mean pooling leaves unused."""
    encoder = pretrained("encoder", name, lambda problems: ModelError(f"TextClassifier: {problems[0]}"))
    config = encoder.config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "vocab_size"):
        raise ModelError(
            f"TextClassifier: {name!r} is a {type(encoder).__name__}, which is no text encoder such as BERT"
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    module: nn.Module = encoder.float()
    return module


def _check_ids(name: str, config: Any, vocab_buckets: int | None, pad_id: int | None, max_tokens: int | None) -> None:
    """Refuse ids that are not those of the encoder's own tokenizer, as far as its config tells."""
    problems = []
    if vocab_buckets is not None and vocab_buckets > config.vocab_size:
        problems.append(f"the data module makes {vocab_buckets} different ids, the encoder knows {config.vocab_size}")
    if pad_id is None:
        problems.append("the encoder names no padding id; give pad_id")
    elif config.pad_token_id not in (None, pad_id):
        problems.append(f"the padding id is {pad_id} in the data, {config.pad_token_id} in the encoder")
    positions = getattr(config, "max_position_embeddings", None)
    if max_tokens is not None and positions is not None and max_tokens > positions:
        problems.append(f"max_tokens is {max_tokens} in the data, the encoder takes {positions} at most")
    if problems:
        raise ModelError(f"TextClassifier: encoder {name!r} does not fit the data: {'; '.join(problems)}")
