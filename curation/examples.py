"""The example table: one row a training example, in one shape whatever file it came from.

Columns: ``example_id`` (String or Int64, unique), ``label`` (String or Int64), the payload, ``split``, and optionally
``source`` and ``true_label`` (only ever used to measure, never to train or to score).
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from curation.errors import CurationError
from lorif_core.atomic import replacing

SPLITS = ("train", "validation", "test")
# Rows that are never trained on: what a model that never saw some rows makes of such rows.
HOLDOUT = "holdout"
RESERVED = ("example_id", "label", "split", "source", "true_label")
# A problem names this many rows and counts the rest: enough to find the cause, short enough to read.
NAMED_ROWS = 5
NAMED_COLUMNS = 30


class Position(int):
    """What to call a row that has no id: its place in its file, from 0 here and from 1 in messages."""


def name_rows(names: Sequence[object]) -> str:
    """Rows (at least one) in words, the one way every message names them.

    By their ids, ``row with id 'a'``, or where they have none by their places, ``rows 1, 2, 3, 4, 5 and 7 more
    (counting from 1, header not counted)``.
    """
    ids = [repr(name) for name in names if not isinstance(name, Position)]
    places = [str(name + 1) for name in names if isinstance(name, Position)]
    parts = []
    if ids:
        parts.append(f"{'rows with ids' if len(ids) > 1 else 'row with id'} {_first(ids)}")
    if places:
        parts.append(f"row{'s' if len(places) > 1 else ''} {_first(places)} (counting from 1, header not counted)")
    return " and ".join(parts)


def _first(items: Sequence[str]) -> str:
    more = f" and {len(items) - NAMED_ROWS} more" if len(items) > NAMED_ROWS else ""
    return ", ".join(items[:NAMED_ROWS]) + more


def name_rows_where(names: Iterable[object], mask: Iterable[bool]) -> str:
    """Those of ``names`` where ``mask`` is true (at least once), in words."""
    return name_rows([name for name, hit in zip(names, mask, strict=True) if hit])


class RowProblems:
    """Problems of single rows; rows with the same one are named together."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[list[object], str]] = {}

    def add(self, problem: str, row: object, reason: str = "") -> None:
        """Note ``problem`` of the row called ``row``; only the first ``reason`` of a problem is told."""
        self._found.setdefault(problem, ([], reason))[0].append(row)

    def sentences(self, where: str) -> list[str]:
        """One sentence a problem, in the order they were found."""
        return [
            f"{where}: {problem}: {name_rows(rows)}" + (f"; the first: {reason}" if reason else "")
            for problem, (rows, reason) in self._found.items()
        ]


def contents_of(dtype: pl.DataType) -> str:
    """What a column holds, in words for people who do not know polars."""
    if dtype.is_integer():
        return "whole numbers"
    if dtype.is_numeric():
        return "fractional numbers"
    if dtype.is_temporal():
        return "dates or times"
    if isinstance(dtype, (pl.List, pl.Array)):
        return "lists"
    names = {pl.String: "text", pl.Boolean: "true and false", pl.Null: "nothing", pl.Binary: "bytes"}
    return names.get(type(dtype), f"{dtype} values")


def column_problems(frame: pl.DataFrame, names: Iterable[str], where: str) -> list[str]:
    """One sentence for every one of ``names`` that is no column of ``frame``; each lists the columns there are."""
    there = frame.columns
    listed = ", ".join(there[:NAMED_COLUMNS]) or "none"
    more = f" and {len(there) - NAMED_COLUMNS} more" if len(there) > NAMED_COLUMNS else ""
    problems = []
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            problems.append(f"{where}: there is no column {name!r}{meant}; the columns are {listed}{more}")
    return problems


def id_problems(ids: pl.Series, where: str) -> list[str]:
    """What is wrong with a column of ids: its type, missing ones, duplicates."""
    column = f"{where}: column {ids.name!r}"
    if ids.dtype not in (pl.String, pl.Int64):
        return [f"{column} holds {contents_of(ids.dtype)}; ids must be text or whole numbers"]
    problems = []
    missing = _blank(ids)
    if missing.any():
        rows = [Position(row) for row in missing.arg_true()]
        problems.append(f"{column}: no id in {name_rows(rows)}; every row needs one")
    repeated = ids.filter(ids.is_duplicated() & ~missing).unique(maintain_order=True)
    if len(repeated):
        named = _first([repr(name) for name in repeated.to_list()])
        problems.append(f"{column}: the same id on several rows: {named}; ids must be unique")
    return problems


def label_problems(labels: pl.Series, row_names: Sequence[object], where: str) -> list[str]:
    """What is wrong with a column of labels: its type, missing ones."""
    column = f"{where}: column {labels.name!r}"
    if labels.dtype not in (pl.String, pl.Int64):
        found = contents_of(labels.dtype)
        if labels.dtype.is_float():
            broken = (labels != labels.round()).fill_null(False)
            if broken.any():
                found = f"{labels.filter(broken)[0]!r} or the like in {name_rows_where(row_names, broken)}"
        return [f"{column} holds {found}; labels must be text or whole numbers"]
    missing = _blank(labels)
    if not missing.any():
        return []
    return [f"{column}: no label in {name_rows_where(row_names, missing)}; label or remove them"]


def split_problems(
    splits: pl.Series, row_names: Sequence[object], where: str, known: Sequence[str] = SPLITS
) -> list[str]:
    """What is wrong with a column of splits: its type, values other than those ``known``."""
    column = f"{where}: column {splits.name!r}"
    if splits.dtype != pl.String:
        return [f"{column} holds {contents_of(splits.dtype)}; it must hold the words {', '.join(known)}"]
    wrong = ~splits.is_in(known).fill_null(False)
    if not wrong.any():
        return []
    found = splits.filter(wrong).unique(maintain_order=True).to_list()
    values = _first(["no value" if value is None else repr(value) for value in found])
    rows = name_rows_where(row_names, wrong)
    return [f"{column}: {values} in {rows}; it must be one of {', '.join(known)}"]


def row_names(ids: pl.Series) -> list[object]:
    """What to call the rows in messages: their ids, and their places where there is none."""
    return [Position(row) if name is None else name for row, name in enumerate(ids.to_list())]


def _blank(column: pl.Series) -> pl.Series:
    """Which cells of a column of text or whole numbers hold nothing, or only spaces."""
    missing = column.is_null()
    if column.dtype == pl.String:
        missing = missing | (column.str.strip_chars() == "").fill_null(False)
    return missing


def table_digest(frame: pl.DataFrame) -> str:
    """Sha256 (64 hex digits) of a table: of its column names, types, rows and their order."""
    digest = hashlib.sha256(repr([(name, str(dtype)) for name, dtype in frame.schema.items()]).encode())
    for column in frame.get_columns():
        for buffer, offsets in _parts(column):
            digest.update(b"%d %d " % (len(offsets), len(buffer)))
            digest.update(offsets.astype("<i8").tobytes())
            digest.update(buffer)
    return digest.hexdigest()


def _parts(column: pl.Series) -> Iterator[tuple[bytes, np.ndarray]]:
    """The column as buffers; in each of them, row i owns ``buffer[offsets[i]:offsets[i + 1]]`` (offsets int64 [n + 1]).

    Whole buffers instead of cells, because an image column has a million numbers to a thousand rows.
    """
    rows = np.arange(len(column) + 1)
    yield column.is_null().to_numpy().astype("u1").tobytes(), rows
    dtype = column.dtype
    if isinstance(dtype, pl.Struct):
        for field in column.struct.fields:
            yield from _parts(column.struct.field(field))
        return
    if isinstance(dtype, pl.Array):
        column = column.arr.to_list()
    if isinstance(dtype, (pl.List, pl.Array)):
        lengths = column.list.len().fill_null(0)
        yield lengths.to_numpy().astype("<i8").tobytes(), rows * 8
        ends = np.concatenate([[0], lengths.cast(pl.Int64).to_numpy().cumsum()])
        for buffer, offsets in _parts(column.filter(lengths > 0).explode()):
            yield buffer, offsets[ends]
    elif dtype.is_float():
        yield column.fill_null(0.0).to_numpy().astype("<f8").tobytes(), rows * 8
    elif dtype == pl.Boolean:
        yield column.fill_null(False).to_numpy().astype("<i8").tobytes(), rows * 8
    elif (dtype.is_integer() and dtype != pl.Int128) or dtype.is_temporal():
        yield column.to_physical().fill_null(0).to_numpy().astype("<i8").tobytes(), rows * 8
    elif dtype != pl.Null:
        texts = column if dtype == pl.Binary else column.cast(pl.String).cast(pl.Binary)
        cells = texts.fill_null(b"").to_list()
        yield b"".join(cells), np.concatenate([[0], np.cumsum([len(cell) for cell in cells], dtype=np.int64)])


def write_parquet_atomic(frame: pl.DataFrame, path: str | Path) -> None:
    """Write ``frame`` beside ``path`` and rename it: at any moment there is the old file, the new one or none.

    Raises:
        CurationError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            frame.write_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CurationError(f"{path}: cannot be written: {error}. Free space, or choose another folder") from error
