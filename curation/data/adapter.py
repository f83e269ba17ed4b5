"""A user's own LightningDataModule as a ``CuratedData``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from curation.data.assembly import class_problems
from curation.data.base import Contents, CuratedData
from curation.data.rows import LabelledRows
from curation.errors import DataError
from curation.examples import Position, RowProblems, id_problems

# Rows read twice, to notice inputs that are drawn anew at every read.
READ_TWICE = 16


def adapt(datamodule: LightningDataModule, *, seed: int = 0) -> CuratedData:
    """Wrap the data sets behind ``train_dataloader()`` and ``val_dataloader()``.

    The data sets stay the user's: a row is read when it is needed, edits choose rows and replace labels on top. Batch
    size and number of workers are those of the training loader. The example table has ids, labels and splits only.

    Ids are ``dataset.ids`` where the training set has them (looked up through ``Subset``), else positions from 0. Those of
    a validation set are used when they are of the same type and none is a training row's; else its rows are numbered
    on, or called ``validation-0`` and so on.

    Limitations: items must be (tensor or array, whole number) pairs of one shape, the labels 0 to K - 1, each on some
    training row, so that a label is a position in the logits of the user's model; no collate function or sampler of
    one's own, and no random augmentation, because scores are about rows as they are.

    Args:
        datamodule: not set up yet, or set up already; ``prepare_data()`` and ``setup("fit")`` are called.
        seed: of the order of the training rows.

    Raises:
        DataError: lists everything that does not fit.
    """
    name = type(datamodule).__name__
    try:
        datamodule.prepare_data()
        datamodule.setup("fit")
    except OSError as error:
        raise DataError([f"{name}: prepare_data or setup failed: {error}"]) from error
    train, found = _loader(datamodule, "train_dataloader", name)
    validation, also_found = _loader(datamodule, "val_dataloader", name)
    if train is None or validation is None or found or also_found:
        raise DataError(found + also_found)

    train_ids, found = _own_ids(train.dataset, f"{name} training set")
    validation_ids, also_found = _own_ids(validation.dataset, f"{name} validation set")
    if found or also_found:
        raise DataError(found + also_found)
    names = list(_places(train.dataset) if train_ids is None else train_ids)
    if train_ids is None:
        train_ids, validation_ids = range(_length(train.dataset)), None
    if (
        validation_ids is None
        or type(validation_ids[0]) is not type(train_ids[0])
        or set(validation_ids) & set(train_ids)
    ):
        validation_ids = _further_ids(train_ids, _length(validation.dataset))
        validation_names: Sequence[Any] = _places(validation.dataset)
    else:
        validation_names = validation_ids

    codes, shape, problems = _read_rows(train.dataset, names, f"{name} training set", None)
    validation_codes, _, found = _read_rows(validation.dataset, validation_names, f"{name} validation set", shape)
    problems += found
    ids = pl.Series("example_id", [*train_ids, *validation_ids])
    problems += id_problems(ids, name)
    if problems:
        raise DataError(problems)

    examples = pl.DataFrame(
        {
            "example_id": ids,
            "label": np.concatenate([codes, validation_codes]),
            "split": ["train"] * len(codes) + ["validation"] * len(validation_codes),
        }
    )
    classes = np.unique(codes).tolist()
    problems = class_problems(examples, name, [*names, *validation_names])
    if classes != list(range(len(classes))):
        problems.append(f"{name}: labels must be 0 to K - 1, each on a training row; got {classes[:20]}")
    if problems:
        raise DataError(problems)
    contents = Contents(
        examples=examples,
        classes=classes,
        payload_kind="image" if len(shape or ()) == 3 and (shape or ())[0] in (1, 3) else "features",
        train=LabelledRows(_UserInputs(train.dataset), codes),
        validation=LabelledRows(_UserInputs(validation.dataset), validation_codes),
        table=examples,
    )
    return CuratedData(contents, batch_size=train.batch_size or 1, seed=seed, num_workers=train.num_workers)


class _UserInputs:
    """The inputs of a user's data set, one row at a time."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return _length(self.dataset)

    def __getitem__(self, row: int) -> Tensor:
        return torch.as_tensor(self.dataset[row][0])


def _places(dataset: Dataset[Any]) -> list[Position]:
    """What messages call rows without ids."""
    return [Position(row) for row in range(_length(dataset))]


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def _loader(datamodule: LightningDataModule, hook: str, name: str) -> tuple[DataLoader[Any] | None, list[str]]:
    """The loader a hook returns, and why its rows cannot be indexed."""
    where = f"{name}.{hook}()"
    method = getattr(datamodule, hook)
    if getattr(method, "__func__", None) is getattr(LightningDataModule, hook):
        return None, [f"{where} is not defined; both training and validation rows are needed"]
    loader = method()
    if not isinstance(loader, DataLoader):
        return None, [f"{where}: expected one torch DataLoader, got {type(loader).__name__}"]
    dataset, problems = loader.dataset, []
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        problems.append(f"{where}: {type(dataset).__name__} is iterable; rows need positions: use a map-style Dataset")
        return None, problems
    if not _length(dataset):
        problems.append(f"{where}: the data set has no rows")
    if loader.batch_size is None:
        problems.append(f"{where}: the loader has no batch_size of its own; give it one instead of a batch sampler")
    elif loader.collate_fn is not default_collate:
        problems.append(f"{where}: a collate_fn of its own is not used here; make rows what they are in the Dataset")
    if loader.batch_size is not None and not isinstance(loader.sampler, (RandomSampler, SequentialSampler)):
        sampler = type(loader.sampler).__name__
        problems.append(f"{where}: {sampler} chooses the rows; every row is used once here: choose them with a Subset")
    return loader, problems


def _own_ids(dataset: Dataset[Any], where: str) -> tuple[Sequence[Any] | None, list[str]]:
    """The ids a data set has, also behind ``Subset``; None without."""
    if isinstance(dataset, Subset) and not hasattr(dataset, "ids"):
        inner, problems = _own_ids(dataset.dataset, where)
        return (None if inner is None else [inner[row] for row in dataset.indices]), problems
    ids = getattr(dataset, "ids", None)
    if ids is None:
        return None, []
    if isinstance(ids, Tensor):
        ids = ids.numpy(force=True)
    listed = [value.item() if isinstance(value, np.generic) else value for value in ids]
    if len(listed) != _length(dataset):
        return None, [f"{where}: {len(listed)} ids for {_length(dataset)} rows"]
    kinds = sorted({type(value).__name__ for value in listed})
    if kinds not in (["str"], ["int"]):
        return None, [f"{where}: ids must be all text or all whole numbers, got {', '.join(kinds)}"]
    return listed, []


def _further_ids(ids: Sequence[Any], count: int) -> list[Any]:
    """``count`` ids for validation rows, of the type of ``ids`` and unlike them."""
    if all(isinstance(value, int) for value in ids):
        start = max(ids) + 1
        return list(range(start, start + count))
    return [f"validation-{row}" for row in range(count)]


def _read_rows(
    dataset: Dataset[Any], names: Sequence[Any], where: str, shape: tuple[int, ...] | None
) -> tuple[np.ndarray, tuple[int, ...] | None, list[str]]:
    """Read every row, which messages call ``names``, once: labels int64 [N], the shape of all inputs, the problems.

    ``shape`` is what the inputs must have; None: what the first one has.
    """
    codes = np.full(len(names), -1, dtype=np.int64)
    wrong = RowProblems()
    for row, name in enumerate(names):
        try:
            values, code, problem = _item(dataset[row])
        except (OSError, ValueError) as error:
            wrong.add(f"reading the row fails with {type(error).__name__}", name, str(error))
            continue
        if values is not None and problem is None:
            shape = tuple(values.shape) if shape is None else shape
            if tuple(values.shape) != shape:
                problem = f"inputs are not all of the shape of the first training row, {shape}"
            elif row < READ_TWICE and not torch.equal(values, torch.as_tensor(dataset[row][0])):
                problem = "inputs differ from one read to the next; turn random augmentation off, for scores and labels"
        if problem is not None:
            wrong.add(problem, name)
        else:
            codes[row] = code
    return codes, shape, wrong.sentences(where)


def _item(item: Any) -> tuple[Tensor | None, int, str | None]:
    """Input, label and problem of one item of a data set."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return None, -1, f"items must be (input, label) pairs, got {type(item).__name__}"
    values, label = item
    if not isinstance(values, (Tensor, np.ndarray)):
        return None, -1, f"inputs must be tensors or arrays, got {type(values).__name__}"
    values = torch.as_tensor(values)
    if values.is_floating_point() and not torch.isfinite(values).all():
        return None, -1, "an input is not a finite number"
    if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)):
        return None, -1, f"labels must be whole numbers, got {type(label).__name__}"
    if label < 0:
        return None, -1, "labels must not be negative"
    return values, int(label), None
