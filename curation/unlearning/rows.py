"""Some rows of a data set, as batches of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from lorif_core.objectives import Batch


@dataclass(frozen=True)
class Rows:
    """Rows by their positions; can be read any number of times, always in this order.

    Attributes:
        dataset: item -> one row.
        positions: which of its items, int [n].
        collate: makes a batch of a list of rows.
        size: rows of a batch.
    """

    dataset: Dataset[Any]
    positions: np.ndarray
    collate: Callable[[list[Any]], Batch]
    size: int = 32

    def __len__(self) -> int:
        """How many there are."""
        return len(self.positions)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of all of them."""
        for start in range(0, len(self), self.size):
            yield self.batch(range(start, min(start + self.size, len(self))))

    def batch(self, which: Sequence[int]) -> Batch:
        """One batch of those numbered ``which``, 0 to n - 1."""
        return self.collate([self.dataset[int(self.positions[i])] for i in which])
