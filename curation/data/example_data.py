"""``ExampleData``: rows with ids that can be trained on, indexed and edited, whatever a row is.

Axes: N training rows (their index is the position among the training rows, in table order).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from curation.errors import DataError

PayloadKind = Literal["features", "image", "text", "questions"]


@dataclass(frozen=True)
class Payload:
    """How one row is shown to a person.

    Attributes:
        kind: which of the other three is set.
        image: uint8 [H, W] (grey) or [H, W, 3] (RGB).
        text: the whole text.
        features: feature name -> value.
    """

    kind: Literal["features", "image", "text"]
    image: np.ndarray | None = None
    text: str | None = None
    features: dict[str, Any] | None = None


class ExampleData(LightningDataModule):
    """Rows with ids, in splits.

    Args:
        examples: the example table, all splits.
        payload_kind: what a row is.
        table: the user's own rows and columns; row i is row i of ``examples``, which may have more rows at its end (those of
            a validation file).
        datasets: split -> its rows, in table order.
        batch_size: rows a step.
        seed: of the order of the training rows.
        num_workers: loader processes; 0 reads in this one, and is right for everything held in memory.

    Attributes:
        examples: the example table (``curation.examples``).
        payload_kind: ``"features"``, ``"image"``, ``"text"`` or ``"questions"``.
        table: as given.
        train_dataset: the rows of the training split, map-style.
        validation_dataset: those that show how far a training is.

    Raises:
        DataError: ``batch_size`` is not a positive whole number.
    """

    train_dataset: Any
    validation_dataset: Any

    def __init__(
        self,
        examples: pl.DataFrame,
        payload_kind: PayloadKind,
        table: pl.DataFrame,
        datasets: Mapping[str, Dataset[Any]],
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        problems = batch_size_problems(batch_size)
        if problems:
            raise DataError(problems)
        self.examples, self.payload_kind, self.table = examples, payload_kind, table
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self._datasets = dict(datasets)
        self._train_rows = (examples["split"] == "train").arg_true().to_numpy()

    @abstractmethod
    def digest(self) -> str:
        """Sha256 (64 hex digits) of everything training sees."""

    @abstractmethod
    def edited(self, decisions: pl.DataFrame) -> ExampleData:
        """The same data after ``decisions`` (columns ``example_id`` and ``decision`` at least)."""

    @abstractmethod
    def show_row(self, row: int) -> Payload:
        """How to show row ``row`` of the example table, of the training or the validation split."""

    def show(self, position: int) -> Payload:
        """How to show the training row of index ``position``."""
        return self.show_row(int(self._train_rows[position]))

    def dataset(self, split: str) -> Any:
        """The rows of a split, map-style, in table order.

        Raises:
            DataError: the data has no data set of them.
        """
        if split not in self._datasets:
            raise DataError(
                [f"there is no data set of the split {split!r}; there are those of {', '.join(self._datasets)}"]
            )
        return self._datasets[split]

    def place(self, row: int) -> tuple[str, int]:
        """The split of row ``row`` of the example table, and its position there."""
        split = self.examples["split"][row]
        return split, int((self.examples["split"].head(row) == split).sum())

    @abstractmethod
    def model_defaults(self) -> dict[str, Any]:
        """What fills a model's constructor: name -> value."""

    def collate(self, rows: Sequence[Any]) -> Any:
        """Rows of a data set as one batch."""
        return default_collate(list(rows))

    def train_ids(self) -> list[str] | list[int]:
        """The ids of the training rows, N, in index order."""
        return self.examples["example_id"].gather(self._train_rows).to_list()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training rows; the order depends on ``seed`` alone."""
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader(self._datasets["train"], self.batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of the validation rows in table order."""
        return self.ordered_dataloader("validation")

    def ordered_dataloader(self, split: str = "train", batch_size: int | None = None) -> DataLoader[Any]:
        """Batches of a split in table order, which is index order for the training rows; every row once.

        Args:
            split: one that the data has, ``"train"`` and ``"validation"`` among them.
            batch_size: rows a batch; the data set's own where left out.

        Raises:
            ValueError: another split.
        """
        if split not in self._datasets:
            known = " or ".join(self._datasets)
            raise ValueError(f"ordered_dataloader: split must be {known}, got {split!r}")
        return self._loader(self._datasets[split], self.batch_size if batch_size is None else batch_size)

    def rows_dataloader(self, rows: Sequence[int], batch_size: int | None = None) -> DataLoader[Any]:
        """Batches of the training rows of these indices, in that order."""
        chosen = Subset(self._datasets["train"], rows)
        return self._loader(chosen, self.batch_size if batch_size is None else batch_size)

    def _loader(self, rows: Dataset[Any], batch_size: int, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            rows,
            batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            **options,
        )


def batch_size_problems(batch_size: object) -> list[str]:
    """What is wrong with a batch size: nothing, or one sentence."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        return [f"batch_size must be a whole number of at least 1, got {batch_size!r}"]
    return []
