"""Some rows of a data set, for a training that is watched on other rows.

Axes: n rows that are trained on, B rows of a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from curation.data.example_data import ExampleData


class Recoded(Dataset[Any]):
    """Rows of the train and validation splits of a data set, with the codes that another data set gives their labels.

    Args:
        data: it.
        rows: positions in its example table, int64 [n]; none of other splits.
        codes: code -> the other's; None: they are the same.
    """

    def __init__(self, data: ExampleData, rows: np.ndarray, codes: Sequence[int] | None) -> None:
        self._codes = codes
        self._parts = [data.dataset(split) for split in ("train", "validation")]
        splits = data.examples["split"].to_numpy()
        self._places = []
        counts = [np.cumsum(splits == split) - 1 for split in ("train", "validation")]
        for row in rows.tolist():
            part = int(splits[row] == "validation")
            self._places.append((part, int(counts[part][row])))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> Any:
        part, row = self._places[position]
        item = self._parts[part][row]
        if self._codes is None:
            return item
        values, code = item
        return values, self._codes[code]


class ChosenRows(LightningDataModule):
    """Some training rows of a data set, in epochs of a given number of optimizer steps.

    Rows are drawn without replacement, pass after pass, and where they carry unequal weights with replacement in proportion to
    them: in the mean that is the weighted loss.

    Args:
        data: whose training rows they are.
        rows: positions among these, int64 [n].
        weights: of each, float64 [n], mean one.
        watched: rows on which every epoch is measured; nothing is trained on them and nothing chosen by them.
        name: digest of the watched rows.
        steps: optimizer steps of an epoch; None: one pass over the rows.

    Raises:
        ValueError: there are no rows, or not as many weights.
    """

    def __init__(
        self,
        data: ExampleData,
        rows: np.ndarray,
        weights: np.ndarray,
        watched: Dataset[Any],
        name: str,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        if not len(rows) or len(rows) != len(weights):
            raise ValueError(f"ChosenRows: {len(rows)} rows and {len(weights)} weights; expected some, and one each")
        self.data, self.rows, self.weights = data, rows, weights
        self.watched, self.name, self.steps = watched, name, steps
        self.classes = getattr(data, "classes", None)

    def digest(self) -> str:
        """Sha256 (hex) of everything training sees."""
        seen = [self.data.digest(), self.rows.tolist(), self.weights.tolist(), self.name, self.steps]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of an epoch."""
        chosen: Dataset[Any] = Subset(self.data.dataset("train"), self.rows.tolist())
        size = self.data.batch_size
        drawn = len(self.rows) if self.steps is None else self.steps * size
        uneven = torch.from_numpy(self.weights) if len(np.unique(self.weights)) > 1 else None
        return self._loader(chosen, sampler=Passes(len(self.rows), drawn, uneven))

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of the watched rows, in their order."""
        return self._loader(self.watched)

    def _loader(self, rows: Dataset[Any], **options: Any) -> DataLoader[Any]:
        collate: Callable[[list[Any]], Any] = self.data.collate
        return DataLoader(rows, self.data.batch_size, num_workers=self.data.num_workers, collate_fn=collate, **options)


class Passes(Sampler[int]):
    """Random passes over n rows, one after the other, cut off after a number of them.

    Attributes:
        generator: what draws them; training seeds it anew for every epoch.
    """

    def __init__(self, rows: int, drawn: int, weights: torch.Tensor | None) -> None:
        self.rows, self.drawn, self.weights = rows, drawn, weights
        self.generator = torch.Generator()

    def __len__(self) -> int:
        return self.drawn

    def __iter__(self) -> Iterator[int]:
        if self.weights is not None:
            yield from torch.multinomial(self.weights, self.drawn, replacement=True, generator=self.generator).tolist()
            return
        left = self.drawn
        while left > 0:
            order = torch.randperm(self.rows, generator=self.generator)[:left]
            yield from order.tolist()
            left -= len(order)
