"""A small language model and rows for it, made in the test."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from curation.unlearning.rows import Rows

VOCABULARY, WIDTH, LENGTH = 11, 8, 7


class Language(nn.Module):
    """Embedding, attention, and a head: logits [B, T, V]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.embedding(input_ids)
        mixed = nn.functional.scaled_dot_product_attention(
            self.query(states), states, self.value(states), is_causal=True
        )
        return self.head(states + torch.tanh(mixed))


class Texts(torch.utils.data.Dataset):
    """Rows of different lengths; the first two tokens of each are the prompt."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(4, LENGTH + 1, (count,), generator=generator)
        self.rows = [torch.randint(1, VOCABULARY, (int(n),), generator=generator) for n in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Tensor:
        return self.rows[position]


def collate(rows: list[Tensor]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def texts(count: int, seed: int = 0, size: int = 3) -> Rows:
    return Rows(Texts(count, seed), np.arange(count), collate, size)


class Points(torch.utils.data.Dataset):
    def __init__(self, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64)
        self.codes = torch.randint(3, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.inputs[position], self.codes[position]


def points(count: int, seed: int = 0, size: int = 3) -> Rows:
    return Rows(Points(count, seed), np.arange(count), torch.utils.data.default_collate, size)


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
