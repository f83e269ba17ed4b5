from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from curation.data import adapt
from curation.errors import DataError
from tests.curation.data.builders import decisions

IMAGES = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3


class Items(Dataset[Any]):
    """Any items, with or without ids."""

    def __init__(self, items: list[Any], ids: Any = None) -> None:
        self.items = items
        if ids is not None:
            self.ids = ids

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]


class Module(LightningDataModule):
    """Makes its loaders in setup, as the Lightning documentation shows."""

    def __init__(self, train: Any, validation: Any, **options: Any) -> None:
        super().__init__()
        self.sets, self.options = (train, validation), options
        self.train: Any = None

    def setup(self, stage: str) -> None:
        assert stage == "fit"
        self.train, self.validation = self.sets

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, **{"batch_size": 5, "shuffle": True, **self.options})

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation, batch_size=5)


def pairs(rows: slice = slice(0, 12)) -> TensorDataset:
    return TensorDataset(IMAGES[rows], LABELS[rows])


def problems(module: LightningDataModule) -> list[str]:
    with pytest.raises(DataError) as error:
        adapt(module)
    return error.value.problems


def test_a_data_module_becomes_a_table_of_ids_labels_and_splits() -> None:
    data = adapt(Module(pairs(slice(0, 9)), pairs(slice(9, 12))))
    assert data.examples.columns == ["example_id", "label", "split"]
    assert data.train_ids() == list(range(9)) and data.classes == [0, 1, 2] and data.batch_size == 5
    assert data.examples["example_id"].to_list() == list(range(12))
    assert data.model_defaults() == {"input_shape": (3, 4, 4), "num_classes": 3}
    inputs, codes = next(iter(data.ordered_dataloader(batch_size=9)))
    assert torch.equal(inputs, IMAGES[:9]) and torch.equal(codes, LABELS[:9])
    picture = data.show(4).image
    assert picture is not None and picture.shape == (4, 4, 3)


def test_edits_lie_on_top_of_the_users_data_set() -> None:
    data = adapt(Module(pairs(slice(0, 9)), pairs(slice(9, 12))))
    edited = data.edited(decisions({0: ("drop", None), 4: ("relabel", 2)}, pl.Int64))
    again = edited.edited(decisions({8: ("drop", None)}, pl.Int64))
    inputs, codes = next(iter(again.ordered_dataloader(batch_size=9)))
    assert torch.equal(inputs, IMAGES[1:8]) and codes.tolist() == [1, 2, 0, 2, 2, 0, 1]
    assert again.train_ids() == list(range(1, 8))
    assert len({data.digest(), edited.digest(), again.digest()}) == 3
    cleaned = data.cleaned_table(decisions({0: ("drop", None)}, pl.Int64))
    assert cleaned.columns == ["example_id", "label", "split"] and cleaned.height == 11


def test_arrays_and_numpy_labels_are_features() -> None:
    rows = [(np.full(4, float(row), dtype=np.float32), np.int64(row % 2)) for row in range(8)]
    data = adapt(Module(Items(rows), Items(rows[:2])))
    assert data.payload_kind == "features"
    assert data.show(3).features == {"0": 3.0, "1": 3.0, "2": 3.0, "3": 3.0}
    assert isinstance(data.train_dataset[0][0], Tensor)


def test_ids_of_the_data_set_are_kept_through_subsets() -> None:
    rows = [(torch.zeros(2), row % 2) for row in range(6)]
    whole = Items(rows, [f"r{row}" for row in range(6)])
    data = adapt(Module(Subset(whole, [5, 0, 3, 2]), Subset(whole, [1, 4])))
    assert data.examples["example_id"].to_list() == ["r5", "r0", "r3", "r2", "r1", "r4"]
    data = adapt(Module(whole, Items(rows[:2])))
    assert data.examples["example_id"].to_list()[6:] == ["validation-0", "validation-1"]
    data = adapt(Module(Items(rows, np.arange(10, 16)), Items(rows[:2])))
    assert data.examples["example_id"].to_list() == list(range(10, 18))
    data = adapt(Module(Items(rows, [np.int64(row) for row in range(4, 10)]), Items(rows[:2], torch.arange(2))))
    assert data.examples["example_id"].to_list() == [4, 5, 6, 7, 8, 9, 0, 1]
    data = adapt(Module(whole, Items(rows[:2], ["r7", "r3"])))
    assert data.examples["example_id"].to_list()[6:] == ["validation-0", "validation-1"]
    data = adapt(Module(Items(rows), Items(rows[:2], ["x", "y"])))
    assert data.examples["example_id"].to_list() == list(range(8))


def test_wrong_ids() -> None:
    rows = [(torch.zeros(2), row % 2) for row in range(4)]
    assert "3 ids for 4 rows" in problems(Module(Items(rows, [1, 2, 3]), Items(rows)))[0]
    assert "same id" in problems(Module(Items(rows, [1, 2, 3, 3]), Items(rows)))[0]
    found = problems(Module(Items(rows, [1, "b", None, 4]), Items(rows)))
    assert "ids must be all text or all whole numbers, got NoneType, int, str" in found[0]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(2), 0


class Augmented(Items):
    def __getitem__(self, row: int) -> Any:
        return torch.rand(2), row % 2


class Files(Items):
    """Images in files, of which one is missing and one is none."""

    def __getitem__(self, row: int) -> Any:
        if row == 2:
            raise FileNotFoundError("no such file: two.png")
        if row in (1, 3):
            raise ValueError(f"row {row} is no image")
        return torch.zeros(2), row % 2


def test_rows_that_cannot_be_read_are_named() -> None:
    found = problems(Module(Files([0] * 5, list("abcde")), Items([(torch.zeros(2), 0)])))
    assert found == [
        "Module training set: reading the row fails with ValueError: rows with ids 'b', 'd'; the first: row 1 is no image",
        "Module training set: reading the row fails with FileNotFoundError: row with id 'c'; the first: no such file: two.png",
    ]


def test_data_sets_that_cannot_be_indexed() -> None:
    found = problems(Module(Stream(), Items([]), shuffle=False))
    assert len(found) == 2 and "Module.train_dataloader(): Stream is iterable" in found[0]
    assert "val_dataloader(): the data set has no rows" in found[1]
    assert "random augmentation" in problems(Module(Augmented([0] * 4), Items([(torch.zeros(2), 0)])))[0]


def test_items_that_are_no_labelled_inputs() -> None:
    rows: list[Any] = [(torch.zeros(2), row % 2) for row in range(4)]
    rows += [
        {"x": 1},
        (torch.zeros(2), 0.5),
        (torch.zeros(2), "cat"),
        (torch.zeros(3), 1),
        (torch.tensor([0.0, torch.nan]), 1),
        ([1, 2], 1),
        (torch.zeros(2), -1),
        (torch.zeros(2), True),
        (torch.zeros(2), 1, 2),
    ]
    found = problems(Module(Items(rows), Items([(torch.zeros(4), 0)])))
    expected = {
        "got dict: row 5 (counting": 0,
        "whole numbers, got float: row 6 (counting": 1,
        "got str: row 7 (counting": 2,
        "shape of the first training row, (2,): row 8 (counting": 3,
        "not a finite number: row 9 (counting": 4,
        "tensors or arrays, got list: row 10 (counting": 5,
        "not be negative: row 11 (counting": 6,
        "got bool: row 12 (counting": 7,
        "got tuple: row 13 (counting": 8,
    }
    assert len(found) == len(expected) + 1
    for words, place in expected.items():
        assert words in found[place]
    assert "Module validation set: inputs are not all of the shape" in found[-1]


def test_labels_must_be_positions_of_logits() -> None:
    rows = [(torch.zeros(2), label) for label in (0, 1, 3)]
    assert (
        "labels must be 0 to K - 1, each on a training row; got [0, 1, 3]"
        in problems(Module(Items(rows), Items(rows)))[0]
    )
    rows = [(torch.zeros(2), label) for label in (0, 1)]
    assert (
        "label 2 is in validation, in row 1 (counting" in problems(Module(Items(rows), Items([(torch.zeros(2), 2)])))[0]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"collate_fn": list}, "a collate_fn of its own"),
        (
            {"shuffle": False, "sampler": WeightedRandomSampler([1.0] * 12, 12)},
            "WeightedRandomSampler chooses the rows",
        ),
        ({"batch_size": None, "shuffle": False}, "no batch_size of its own"),
    ],
)
def test_loaders_that_do_more_than_batch(options: dict[str, Any], words: str) -> None:
    (problem,) = problems(Module(pairs(), pairs(), **options))
    assert words in problem


def test_both_loaders_are_needed() -> None:
    class Half(Module):
        val_dataloader = LightningDataModule.val_dataloader

    class Several(Module):
        def train_dataloader(self) -> Any:
            return [DataLoader(pairs())]

    assert problems(Half(pairs(), pairs())) == [
        "Half.val_dataloader() is not defined; both training and validation rows are needed"
    ]
    assert "expected one torch DataLoader, got list" in problems(Several(pairs(), pairs()))[0]


def test_a_module_made_from_data_sets() -> None:
    module = LightningDataModule.from_datasets(pairs(), pairs(slice(0, 3)), batch_size=4)
    assert adapt(module).batch_size == 4
