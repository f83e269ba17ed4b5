"""A small GPT: a causal language model that learns a few hundred answers by heart on a CPU, nothing to download.

Axes: B rows, T tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from curation.models.language import LanguageModel

# Standard deviation of the first weights, as in GPT-2.
SPREAD = 0.02


class TinyGPT(LanguageModel):
    """A decoder of pre-norm blocks with learnt positions, an untied head and no dropout.

    Every layer is one that ``lorif_core`` attributes.

    Args:
        vocab_size: V, from the data.
        max_tokens: largest T, from the data.
        tokenizer: digest of what made the ids, from the data.
        depth: blocks.
        width: D, a multiple of ``heads``.
        heads: H.
        lr: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        schedule: ``"constant"`` or ``"cosine"``.

    Raises:
        ModelError: an argument is out of its range; lists all that are.
    """

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        tokenizer: str | None = None,
        depth: int = 2,
        width: int = 128,
        heads: int = 4,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        schedule: str = "cosine",
    ) -> None:
        sizes = {"vocab_size": vocab_size, "max_tokens": max_tokens, "depth": depth, "width": width, "heads": heads}
        problems = [f"{name} must be at least 1, got {size}" for name, size in sizes.items() if size < 1]
        if not problems and width % heads:
            problems.append(f"width must be a multiple of heads, got width {width} and {heads} heads")
        super().__init__(lr, weight_decay, schedule, problems)
        self.save_hyperparameters()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_tokens, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=SPREAD)
        for block in self.blocks:  # their sum over the depth keeps the spread of one
            for last in (block.attention_out, block.mlp_out):
                nn.init.normal_(last.weight, std=SPREAD / math.sqrt(2 * depth))  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of ids [B, T], padded on the right: no token sees what comes after it, so the mask is not needed.

        Raises:
            ValueError: T is above ``max_tokens``.
        """
        most = self.positions.num_embeddings
        if input_ids.shape[1] > most:
            raise ValueError(
                f"TinyGPT: rows of {input_ids.shape[1]} tokens, max_tokens is {most}; raise it in the data"
            )
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)  # [B, T]
        hidden = self.blocks(self.tokens(input_ids) + self.positions(places))  # [B, T, D]
        logits: Tensor = self.head(self.norm(hidden))
        return logits


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        parts = self.attention_in(self.attention_norm(hidden)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [B, H, T, D/H]
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attention_out(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = hidden + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(hidden))))
        return changed
