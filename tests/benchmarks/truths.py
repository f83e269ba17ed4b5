"""The two ready ground truths of retrainings in `DATA/truth`: digits (vectors) and a byte-level GPT (sequences)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from lorif_core import CausalLM, Classification
from lorif_core.evaluation import linear_datamodeling_score
from lorif_core.evaluation.lds import LDS
from lorif_core.objectives import Objective
from tests.benchmarks.lds import MLP, digits

WIDTH, HEADS, LENGTH, VOCABULARY = 64, 4, 64, 128


@dataclass(frozen=True)
class Truth:
    """A model, what it was trained with, the queries, and what retrainings on half the data made of each query's loss."""

    name: str
    model: nn.Module
    objective: Objective
    train: Iterable[Any]
    query: Iterable[Any]
    masks: np.ndarray
    losses: np.ndarray

    def lds(self, scores: Tensor) -> LDS:
        """Of scores [Q, N]."""
        return linear_datamodeling_score(scores.numpy(), self.masks, self.losses)


class Block(nn.Module):
    """One transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.ln1(x)).view(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class TinyLM(nn.Module):
    """The network whose retrainings are the second ground truth."""

    def __init__(self) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.ln, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def truths(data: Path) -> list[Truth]:
    """Both, from the folder that holds `truth/`."""
    folder = data / "truth"
    mlp, lm = MLP(), TinyLM()
    mlp.load_state_dict(load_file(folder / "digits_mlp.safetensors"))
    lm.load_state_dict(load_file(folder / "tiny_lm.safetensors"))
    train, query = (DataLoader(part, batch_size=64) for part in digits())
    vectors, texts = np.load(folder / "digits_mlp_lds.npz"), np.load(folder / "tiny_lm_lds.npz")
    passages = torch.from_numpy(texts["passages"].astype(np.int64))
    return [
        Truth("digits", mlp, Classification(), train, query, vectors["masks"], -vectors["neg_loss"]),
        Truth(
            "tiny_lm",
            lm,
            CausalLM(),
            list(passages[:1200].split(50)),
            [passages[1200:]],
            texts["masks"],
            texts["losses"].mean(1),
        ),
    ]
