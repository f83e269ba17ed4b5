"""Ready ground truths of retrainings: `DATA/truth/digits_mlp*` (vectors) and `DATA/truth/tiny_lm*` (sequences)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lorif_core import CausalLM, Classification
from lorif_core.evaluation.lds import LDS, linear_datamodeling_score
from lorif_core.objectives import Objective


@dataclass(frozen=True)
class Truth:
    """A model, its data, and what its retrainings on half of them lost."""

    name: str
    model: nn.Module
    objective: Objective
    train: DataLoader
    query: DataLoader
    score: Callable[[Tensor], LDS]
    """LDS of scores [Q, N], positive = proponent."""
    linear: list[str]
    """Globs of the Linear layers."""


class MLP(nn.Module):
    """64-256-10 on digits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


class Block(nn.Module):
    """Of `TinyLM`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, t, d))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class TinyLM(nn.Module):
    """Bytes [B, 64] -> logits [B, 64, 128]: 2 layers of width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(128, 64), nn.Embedding(64, 64)
        self.blocks = nn.ModuleList(Block(64, 4) for _ in range(2))
        self.ln, self.head = nn.LayerNorm(64), nn.Linear(64, 128, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,437 training and 360 query rows, split as the ground truth was."""
    data = load_digits()
    x, y = (data.data / 16.0).astype("float32"), data.target.astype("int64")
    parts = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    train_x, query_x, train_y, query_y = (torch.from_numpy(part) for part in parts)
    return TensorDataset(train_x, train_y), TensorDataset(query_x, query_y)


def digits_mlp(data: Path) -> Truth:
    """100 retrainings, one seed each."""
    truth = np.load(data / "truth" / "digits_mlp_lds.npz")
    model = _loaded(MLP(), data / "truth" / "digits_mlp.safetensors")
    return _truth("digits", model, Classification(), *digits(), 64, truth["masks"], -truth["neg_loss"], ["*"])


def tiny_lm(data: Path) -> Truth:
    """80 retrainings, the mean of two seeds each."""
    truth = np.load(data / "truth" / "tiny_lm_lds.npz")
    ids = torch.from_numpy(truth["passages"].astype(np.int64))
    model = _loaded(TinyLM(), data / "truth" / "tiny_lm.safetensors")
    losses, linear = truth["losses"].mean(1), ["blocks.*.qkv", "blocks.*.proj", "blocks.*.up", "blocks.*.down", "head"]
    return _truth("tiny_lm", model, CausalLM(), ids[:1200], ids[1200:], 16, truth["masks"], losses, linear)


def _loaded(model: nn.Module, file: Path) -> nn.Module:
    model.load_state_dict(load_file(file))
    return model.eval()


def _truth(
    name: str,
    model: nn.Module,
    objective: Objective,
    train: Dataset | Tensor,
    query: Dataset | Tensor,
    batch_size: int,
    masks: np.ndarray,
    losses: np.ndarray,
    linear: list[str],
) -> Truth:
    loaders = [DataLoader(part, batch_size=batch_size) for part in (train, query)]  # type: ignore[arg-type]
    return Truth(
        name,
        model,
        objective,
        *loaders,
        lambda scores: linear_datamodeling_score(scores.numpy(), masks, losses),
        linear,
    )
