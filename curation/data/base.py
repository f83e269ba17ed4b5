"""``CuratedData``: what training, scoring, cleaning and the report know of a data set, whatever it was made from.

Axes: N training rows (their index is the position among the training rows, in table order), K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor
from torch.utils.data import TensorDataset

from curation.data.edits import plan_edits
from curation.data.example_data import ExampleData, Payload, PayloadKind
from curation.data.rows import LabelledRows


@dataclass(frozen=True)
class Contents:
    """What a data set holds; never changed, an edit makes another.

    Attributes:
        examples: the example table, all splits.
        classes: the labels of the training split, sorted; a label's code is its position here.
        payload_kind: what a row is.
        train: the rows of the training split, in table order.
        validation: those of the validation split, in table order.
        table: the user's own rows and columns with the current labels; row i is row i of ``examples``, which may have
            more rows at its end (those of a validation file).
        label_column: the column of ``table`` that holds the label.
        payload_columns: the columns of ``examples`` that hold the payload; empty where only the inputs do.
        defaults: what a model must know beyond the shape of an input and the number of classes; plain values.
        test: inputs of the rows of the test split, in table order, which are not trained on and measure nothing here; None where
            no row is of it.
    """

    examples: pl.DataFrame
    classes: list[Any]
    payload_kind: PayloadKind
    train: LabelledRows
    validation: LabelledRows
    table: pl.DataFrame
    label_column: str = "label"
    payload_columns: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    test: Tensor | None = None


class CuratedData(ExampleData):
    """A data set of (input, label) rows with ids, that can be trained on, shown and edited.

    Batches are (inputs, codes int64 [B]).

    Args:
        contents: what it holds.
        batch_size: rows a step.
        seed: of the order of the training rows.
        num_workers: loader processes; 0 reads in this one, and is right for everything held in memory.

    Attributes:
        examples: the example table, all splits (``curation.examples``).
        classes: sorted labels; code = position.
        payload_kind: ``"features"``, ``"image"`` or ``"text"``.
        train_dataset: map-style; item -> (input tensor, int code).
        validation_dataset: likewise.

    Raises:
        DataError: ``batch_size`` is not a positive whole number.
    """

    def __init__(self, contents: Contents, *, batch_size: int = 64, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(
            contents.examples,
            contents.payload_kind,
            contents.table,
            {"train": contents.train, "validation": contents.validation},
            batch_size=batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.contents = contents
        self.classes = contents.classes
        self.train_dataset: LabelledRows = contents.train
        self.validation_dataset: LabelledRows = contents.validation
        self._digest: str | None = None

    def digest(self) -> str:
        """Sha256 (64 hex digits) of everything training sees: inputs, codes, classes, ids, batch size and seed.

        The true labels are no part of it: nothing is trained on them.
        """
        if self._digest is None:
            splits = self.examples["split"]
            seen = {
                "train": [self.train_ids(), self.train_dataset.digest()],
                "validation": [
                    self.examples.filter(splits == "validation")["example_id"].to_list(),
                    self.validation_dataset.digest(),
                ],
                "classes": self.classes,
                # What a tokenizer makes is in the inputs; the folder it lies in may be another one tomorrow.
                "defaults": {name: value for name, value in self.contents.defaults.items() if name != "tokenizer"},
                "batch_size": self.batch_size,
                "seed": self.seed,
            }
            self._digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
        return self._digest

    def train_labels(self) -> np.ndarray:
        """The codes of the training rows, int64 [N], in index order."""
        return self.train_dataset.codes.copy()

    def edited(self, decisions: pl.DataFrame) -> CuratedData:
        """The same data after ``decisions``: dropped training rows gone, relabelled ones with their new label.

        Inputs, classes and validation rows are the same as before.

        Args:
            decisions: columns ``example_id``, ``decision`` (keep, drop, relabel, review) and ``suggested_label``; training
                rows that are not in it, or that are to be kept or reviewed, stay as they are.

        Raises:
            DataError: lists all problems: unknown or repeated ids, unknown decisions, a relabel to no known class, a
                class left without training rows.
        """
        before = self.contents
        edits = plan_edits(before.examples, decisions, before.classes)
        kept = edits.kept.to_numpy()
        rows = np.flatnonzero(kept[self._train_rows])
        codes = encode(edits.labels.gather(self._train_rows[rows]), before.classes)
        examples = before.examples.with_columns(edits.labels).filter(edits.kept)
        table = with_labels(before.table, before.label_column, edits.labels).filter(edits.kept[: before.table.height])
        contents = replace(before, examples=examples, train=before.train.take(rows, codes), table=table)
        return CuratedData(contents, batch_size=self.batch_size, seed=self.seed, num_workers=self.num_workers)

    def cleaned_table(self, decisions: pl.DataFrame) -> pl.DataFrame:
        """The user's own table, every column and split, after ``decisions``: rows dropped, the label column replaced.

        A separate validation file is no part of it: no decision is about its rows.

        Raises:
            DataError: as :meth:`edited`.
        """
        return self.edited(decisions).contents.table

    def show_row(self, row: int) -> Payload:
        """How to show row ``row`` of the example table, of the training or the validation split."""
        columns = self.contents.payload_columns
        if self.payload_kind == "text":
            return Payload("text", text=self.examples[columns[0]][row])
        if columns and self.payload_kind == "features":
            return Payload("features", features=self.examples.select(columns).row(row, named=True))
        split, position = self.place(row)
        inputs = self.dataset(split)[position][0]
        if self.payload_kind == "image":
            return Payload("image", image=as_picture(inputs))
        values = inputs.reshape(-1).tolist()
        return Payload("features", features={str(number): value for number, value in enumerate(values)})

    def dataset(self, split: str) -> Any:
        """See `ExampleData`; items of the split test are (inputs,): their labels may be on no training row."""
        if split == "test" and self.contents.test is not None:
            return TensorDataset(self.contents.test)
        return super().dataset(split)

    def model_defaults(self) -> dict[str, Any]:
        """What fills a model's constructor: ``input_shape`` and ``num_classes``.

        For text also ``vocab_buckets``, ``pad_id``, ``max_tokens`` and ``tokenizer`` (``"hashed"``, or its name or folder).
        """
        shape = tuple(self.train_dataset[0][0].shape)
        return {"input_shape": shape, "num_classes": len(self.classes), **self.contents.defaults}


def encode(labels: pl.Series, classes: list[Any]) -> np.ndarray:
    """The codes, int64 [rows], of ``labels``, all of which are among ``classes``."""
    codes = {label: code for code, label in enumerate(classes)}
    return np.array([codes[label] for label in labels.to_list()], dtype=np.int64)


def with_labels(table: pl.DataFrame, column: str, labels: pl.Series) -> pl.DataFrame:
    """``table`` with the first of ``labels`` in ``column``, in the type that column has."""
    return table.with_columns(labels.head(table.height).cast(table.schema[column]).alias(column))


def as_picture(values: Tensor) -> np.ndarray:
    """An image tensor [H, W], [1, H, W] or [3, H, W] as uint8 [H, W] or [H, W, 3].

    Floats in [0, 1] are brightness; other values are stretched over the range they span.
    """
    pixels = values.detach().cpu().numpy()
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    if pixels.dtype == np.uint8:
        return pixels
    pixels = pixels.astype(np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        pixels = (pixels - low) / max(high - low, 1e-12)
    return np.rint(pixels * 255).astype(np.uint8)
