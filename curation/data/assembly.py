"""From rows and their inputs to a data set: the split, the planted noise, the classes and their codes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from curation.data.base import Contents, encode, with_labels
from curation.data.example_data import PayloadKind, batch_size_problems
from curation.data.noise import PROBE_COLUMNS, noise_problems, plant_noise
from curation.data.rows import LabelledRows
from curation.errors import DataError
from curation.examples import NAMED_ROWS, name_rows_where


def option_problems(
    noise: Mapping[str, Any] | None, validation_fraction: float, seed: int, batch_size: int
) -> list[str]:
    """What is wrong with the options every data set of this tool has."""
    problems = noise_problems(noise) + batch_size_problems(batch_size)
    fraction = validation_fraction
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        problems.append(f"validation_fraction must be between 0 and 1, got {fraction!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        problems.append(f"seed must be a whole number from 0, got {seed!r}")
    return problems


def stratified_split(ids: pl.Series, labels: pl.Series, fraction: float, seed: int) -> pl.Series:
    """``train`` or ``validation`` for every row: of each label about ``fraction`` to validation, at least one row to train.

    Rows are ordered by a hash of seed and id, so neither the order of the table nor, but for a few rows at the border,
    rows added or removed later move a row to the other side.
    """
    hashes = (hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in ids.to_list())
    draws = np.array([int.from_bytes(value, "big") for value in hashes], dtype=np.uint64)
    _, codes, sizes = np.unique(labels.to_numpy(), return_inverse=True, return_counts=True)
    wanted = np.minimum(np.rint(fraction * sizes), sizes - 1)  # [K]
    order = np.lexsort((draws, codes))  # rows of one label together, by their draw
    rank = np.arange(len(ids)) - (np.cumsum(sizes) - sizes)[codes[order]]
    validation = np.zeros(len(ids), dtype=bool)
    validation[order[rank < wanted[codes[order]]]] = True
    return pl.Series("split", np.where(validation, "validation", "train"))


def class_problems(examples: pl.DataFrame, where: str, names: Sequence[object]) -> list[str]:
    """What makes training or measuring on the splits of ``examples``, whose rows messages call ``names``, impossible."""
    train = examples.filter(pl.col("split") == "train")
    validation = examples.filter(pl.col("split") == "validation")
    classes = train["label"].unique().to_list()
    problems = []
    if train.is_empty():
        problems.append(f"{where}: no row is in the train split")
    elif len(classes) < 2:
        problems.append(f"{where}: every training row is labelled {classes[0]!r}; two classes or more are needed")
    if validation.is_empty():
        problems.append(
            f"{where}: no row is left for validation, because every label keeps at least one row to train on; add rows, "
            "raise validation_fraction or give a validation split"
        )
    if train.is_empty():
        return problems
    unseen = (examples["split"] == "validation") & ~examples["label"].is_in(classes)
    labels = examples.filter(unseen)["label"].unique(maintain_order=True)
    for label in labels[:NAMED_ROWS]:
        named = name_rows_where(names, unseen & (examples["label"] == label))
        problems.append(
            f"{where}: label {label!r} is in validation, in {named}, but on no training row; remove it or train on some"
        )
    if len(labels) > NAMED_ROWS:
        problems.append(f"{where}: {len(labels) - NAMED_ROWS} more labels of validation are on no training row")
    return problems


def assemble(
    examples: pl.DataFrame,
    inputs: Tensor,
    payload_kind: PayloadKind,
    *,
    where: str,
    noise: Mapping[str, Any] | None,
    payload_columns: tuple[str, ...],
    table: pl.DataFrame | None = None,
    label_column: str = "label",
    defaults: Mapping[str, Any] | None = None,
) -> Contents:
    """Plant the noise and make the data sets.

    Args:
        examples: a checked example table without class problems; with noise, without true labels.
        inputs: [rows, ...], row i belongs to row i of ``examples``.
        payload_kind: what a row is.
        where: what to call the table in messages.
        noise: kind, rate and seed of the wrong labels to plant into the training split, or None.
        payload_columns: the columns of ``examples`` that hold the payload.
        table: the user's own columns; ``examples`` where left out.
        label_column: the column of ``table`` that holds the label.
        defaults: what a model must know of the data.

    Raises:
        DataError: the noise leaves a class without rows.
    """
    defaults = dict(defaults or {})
    is_train = (examples["split"] == "train").to_numpy()
    train, validation = np.flatnonzero(is_train), np.flatnonzero((examples["split"] == "validation").to_numpy())
    test = np.flatnonzero((examples["split"] == "test").to_numpy())
    classes = examples["label"].gather(train).unique().sort().to_list()
    codes = encode(examples["label"].gather(train), classes)
    if noise is not None:
        noisy = plant_noise(codes, len(classes), **noise, inputs=_probed(inputs[train], defaults))
        gone = [repr(label) for code, label in enumerate(classes) if not (noisy == code).any()]
        if gone:
            raise DataError([f"{where}: the noise leaves no training row labelled {', '.join(gone)}; use a lower rate"])
        labels = examples["label"].to_list()
        for row, code in zip(train, noisy, strict=True):
            labels[row] = classes[code]
        examples = examples.with_columns(
            pl.Series("label", labels, dtype=examples.schema["label"]), pl.col("label").alias("true_label")
        )
        codes = noisy
    return Contents(
        examples=examples,
        classes=classes,
        payload_kind=payload_kind,
        train=LabelledRows(inputs[train], codes),
        validation=LabelledRows(inputs[validation], encode(examples["label"].gather(validation), classes)),
        table=examples if table is None else with_labels(table, label_column, examples["label"]),
        label_column=label_column,
        payload_columns=payload_columns,
        defaults=defaults,
        test=inputs[test] if len(test) else None,
    )


def _probed(inputs: Tensor, defaults: Mapping[str, Any]) -> np.ndarray:
    """The inputs as numbers [N, D] a linear probe can use: token ids become shares of (folded) buckets."""
    if inputs.is_floating_point():
        return inputs.reshape(len(inputs), -1).numpy()
    ids = inputs.numpy()
    real = ids != defaults["pad_id"]
    shares: np.ndarray = np.zeros((len(ids), PROBE_COLUMNS))
    np.add.at(shares, (np.nonzero(real)[0], ids[real] % PROBE_COLUMNS), 1.0)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares
