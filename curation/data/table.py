"""``TableData``: a user's own Parquet, CSV or JSONL file as a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from curation.data.assembly import assemble, class_problems, option_problems, stratified_split
from curation.data.base import CuratedData
from curation.data.columns import Columns, differing_types, examples_of, naming_problems, resolve
from curation.data.payload import PayloadReader
from curation.data.reading import read_table
from curation.data.tokens import trimmed
from curation.errors import DataError
from curation.examples import column_problems, id_problems
from curation.huggingface import HASHED


class TableData(CuratedData):
    """Rows of a Parquet, CSV or JSONL file, told apart by the end of its name; the file is never changed.

    What a row is: ``text``, ``image``, the ``features``, or, with none of the three, every numeric column that has no
    other use. Inputs are float32 [F] for features (as they are: the model learns their scale from the training split, so
    a checkpoint needs no data module and an edit changes no input), float32 [C, H, W] for images (bytes divided by
    255), int64 [T] for texts (``curation.data.tokens``), T being what the longest takes, ``max_tokens`` at most.

    Labels are text or whole numbers (true/false and 1.0 count as such).

    Args:
        path: the file.
        label: column of the label.
        id: column of the ids; None: ``example_id`` if there is one, else rows are numbered from 0.
        features: columns of numbers.
        text: column of texts.
        image: column of images: nested lists or arrays of numbers, or paths of image files.
        split: column with the words train, validation and test; None: a stratified split.
        true_label: column of right labels where known, of the type of the labels; only ever used to measure.
        source: column that says where a row is from.
        noise: wrong labels to plant into the training split, as in ``Digits``; not together with ``true_label``.
        validation_fraction: share of each class for validation, where neither ``split`` nor ``validation_path`` is given.
        validation_path: file of the validation rows, with the same columns; ``path`` is then all training.
        batch_size: rows a step.
        seed: of the split and of the order of the training rows.
        max_tokens: largest number of a text's ids; what is beyond is cut off.
        buckets: how many ids the n-grams of texts are hashed to, padding included.
        tokenizer: what makes the ids of texts: ``"hashed"``, or the name or folder of a Hugging Face tokenizer (extra
            ``llm``), the one that belongs to the model's encoder.
        image_shape: of images held as flat lists: [H, W], [C, H, W] or [H, W, C].
        image_size: [H, W] to resize image files to; None: they must be of one size.
        image_mode: ``"L"`` (grey) or ``"RGB"`` for image files; None: grey when all files are.
        image_root: folder that image paths are relative to and may not leave; None: the folder of the table.

    Raises:
        DataError: lists every problem of the options, the files and their rows.
    """

    path_arguments = ("path", "validation_path", "image_root")
    folder_arguments = ("tokenizer",)

    def __init__(
        self,
        path: str | Path,
        label: str,
        id: str | None = None,
        *,
        features: Sequence[str] | None = None,
        text: str | None = None,
        image: str | None = None,
        split: str | None = None,
        true_label: str | None = None,
        source: str | None = None,
        noise: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.2,
        validation_path: str | Path | None = None,
        batch_size: int = 64,
        seed: int = 0,
        max_tokens: int = 256,
        buckets: int = 16384,
        tokenizer: str = HASHED,
        image_shape: Sequence[int] | None = None,
        image_size: Sequence[int] | None = None,
        image_mode: str | None = None,
        image_root: str | Path | None = None,
    ) -> None:
        files = [Path(path)] if validation_path is None else [Path(path), Path(validation_path)]
        reader = PayloadReader(max_tokens, buckets, tokenizer, image_shape, image_size, image_mode, image_root)
        problems = option_problems(noise, validation_fraction, seed, batch_size) + reader.option_problems()
        if split is not None and validation_path is not None:
            problems.append("give split or validation_path, not both")
        if len(files) > 1 and os.path.realpath(files[0]) == os.path.realpath(files[1]):
            problems.append("validation_path is the same file; validation rows must be others than those of training")
        if noise is not None and true_label is not None:
            problems.append("noise would overwrite the true labels there are; leave out noise or true_label")
        named = Columns(label, id, features, text, image, split, true_label, source)
        misnamed = naming_problems(named)
        problems = [f"{path}: {problem}" for problem in problems + misnamed + reader.unused_options(named)]
        if misnamed:
            raise DataError(problems)
        tables, columns = _load(files, named, problems)
        examples, inputs, defaults = _rows(files, tables, columns, reader, validation_fraction, seed)
        contents = assemble(
            examples,
            torch.from_numpy(inputs),
            reader.kind(columns),
            where=" and ".join(map(str, files)),
            noise=noise,
            payload_columns=columns.payload(),
            table=tables[0],
            label_column=label,
            defaults=defaults,
        )
        super().__init__(contents, batch_size=batch_size, seed=seed)


def _load(files: Sequence[Path], named: Columns, problems: Sequence[str]) -> tuple[list[pl.DataFrame], Columns]:
    """The tables, and their columns resolved; DataError with ``problems`` and those of the files and their columns."""
    tables, found = [], list(problems)
    for file in files:
        try:
            tables.append(read_table(file))
        except DataError as error:
            found += error.problems
    if len(tables) < len(files):
        raise DataError(found)
    empty = [f"{file}: the table has no rows" for file, table in zip(files, tables, strict=True) if table.is_empty()]
    if empty:  # such a file tells nothing about its columns
        raise DataError(found + empty)
    columns, unresolved = resolve(named, tables[0], str(files[0]))
    found += unresolved
    for file, table in zip(files[1:], tables[1:], strict=True):
        if not unresolved:
            found += column_problems(table, columns.used(), str(file))
    if found:
        raise DataError(found)
    return tables, columns


def _rows(
    files: Sequence[Path],
    tables: Sequence[pl.DataFrame],
    columns: Columns,
    reader: PayloadReader,
    validation_fraction: float,
    seed: int,
) -> tuple[pl.DataFrame, np.ndarray, dict[str, Any]]:
    """The example table with its splits, the inputs of its rows and what a model must know of them.

    Raises:
        DataError: lists every problem of the rows.
    """
    where = " and ".join(map(str, files))
    parts: list[pl.DataFrame] = []
    inputs: list[np.ndarray] = []
    defaults: dict[str, Any] = {}
    names: list[object] = []
    keys_wrong, payload_wrong = [], []
    for file, table, split in zip(files, tables, (None,) if len(files) == 1 else ("train", "validation"), strict=True):
        first_row = sum(part.height for part in parts)
        part, own_names, found = examples_of(table, columns, str(file), first_row=first_row, split=split)
        keys_wrong += found
        values, defaults, found = reader.read(part, columns, own_names, file)
        names += own_names
        payload_wrong += found
        parts.append(part)
        inputs.append(values)
    keys_wrong += [f"{files[-1]}: {problem}" for problem in differing_types(parts[0], parts[-1])]
    if not payload_wrong and inputs[0].shape[1:] != inputs[-1].shape[1:]:
        shapes = f"{list(inputs[-1].shape[1:])}, in {files[0]} {list(inputs[0].shape[1:])}"
        payload_wrong.append(f"{files[-1]}: rows have shape {shapes}; they must be the same")

    if not keys_wrong:
        keys = pl.concat([part.select(pl.col("^(example_id|label|split)$")) for part in parts])
        if "split" not in keys.columns:
            splits = stratified_split(keys["example_id"], keys["label"], validation_fraction, seed)
            keys = keys.with_columns(splits)
        keys_wrong += id_problems(keys["example_id"], where) if len(parts) > 1 else []
        keys_wrong += class_problems(keys, where, names)
    if keys_wrong or payload_wrong:
        raise DataError(keys_wrong + payload_wrong)
    if columns.image is not None and parts[0].schema["image"] != parts[-1].schema["image"]:
        # Lists in one file, arrays or paths in the other: only what was made of them is alike.
        parts = [part.with_columns(pl.Series("image", pixels)) for part, pixels in zip(parts, inputs, strict=True)]
    examples = pl.concat(parts, how="vertical_relaxed").with_columns(keys["split"])
    joined = np.concatenate(inputs)
    return examples, trimmed(joined, defaults["pad_id"]) if columns.text is not None else joined, defaults
