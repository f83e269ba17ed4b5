"""The example table: one row a training example, in one shape whatever file it came from.

Columns: ``example_id`` (String or Int64, unique), ``label`` (String or Int64), the payload, ``split``, and optionally
``source`` and ``true_label`` (only ever used to measure, never to train or to score).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from curation.errors import CurationError, DataError

SPLITS = ("train", "validation", "test")
RESERVED = ("example_id", "label", "split", "source", "true_label")
FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson")
# A problem names this many rows and counts the rest: enough to find the cause, short enough to read.
NAMED_ROWS = 5


def name_rows(ids: Sequence[object]) -> str:
    """``ids`` (at least one) in words: ``row 'a'``, or ``rows 1, 2, 3, 4, 5 and 7 more``."""
    named = ", ".join(repr(row) for row in ids[:NAMED_ROWS])
    more = f" and {len(ids) - NAMED_ROWS} more" if len(ids) > NAMED_ROWS else ""
    return f"row{'s' if len(ids) > 1 else ''} {named}{more}"


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


def column_problems(frame: pl.DataFrame, names: Iterable[str], where: str) -> list[str]:
    """One sentence for every one of ``names`` that is no column of ``frame``; each lists the columns there are."""
    there = ", ".join(frame.columns) or "none"
    return [
        f"{where}: there is no column {name!r}; the columns are {there}" for name in names if name not in frame.columns
    ]


def id_problems(ids: pl.Series, where: str) -> list[str]:
    """What is wrong with a column of ids: its type, missing ones, duplicates."""
    column = f"{where}: column {ids.name!r}"
    if ids.dtype not in (pl.String, pl.Int64):
        return [f"{column} holds {ids.dtype}; ids must be text or whole numbers"]
    problems = []
    missing = ids.is_null()
    if ids.dtype == pl.String:
        missing = missing | (ids.str.strip_chars() == "").fill_null(False)
    if missing.any():
        rows = missing.arg_true().to_list()
        problems.append(f"{column}: no id in {name_rows(rows)} (counted from 0)")
    repeated = ids.filter(ids.is_duplicated() & ~missing).unique(maintain_order=True)
    if len(repeated):
        problems.append(f"{column}: the same id on several rows: {name_rows(repeated.to_list())}; ids must be unique")
    return problems


def label_problems(labels: pl.Series, row_names: Sequence[object], where: str) -> list[str]:
    """What is wrong with a column of labels: its type, missing ones."""
    column = f"{where}: column {labels.name!r}"
    if labels.dtype not in (pl.String, pl.Int64):
        return [f"{column} holds {labels.dtype}; labels must be text or whole numbers"]
    missing = labels.is_null()
    if labels.dtype == pl.String:
        missing = missing | (labels.str.strip_chars() == "").fill_null(False)
    if not missing.any():
        return []
    return [f"{column}: no label in {name_rows_where(row_names, missing)}; label or remove them"]


def split_problems(splits: pl.Series, row_names: Sequence[object], where: str) -> list[str]:
    """What is wrong with a column of splits: its type, values other than train, validation and test."""
    column = f"{where}: column {splits.name!r}"
    if splits.dtype != pl.String:
        return [f"{column} holds {splits.dtype}; it must hold the words {', '.join(SPLITS)}"]
    wrong = ~splits.is_in(SPLITS).fill_null(False)
    if not wrong.any():
        return []
    values = ", ".join(repr(value) for value in splits.filter(wrong).unique(maintain_order=True)[:NAMED_ROWS])
    rows = name_rows_where(row_names, wrong)
    return [f"{column}: {values} in {rows}; it must be one of {', '.join(SPLITS)}"]


def row_names(ids: pl.Series) -> list[object]:
    """What to call the rows in messages: their ids, and ``#position`` where there is none."""
    return [f"#{row}" if name is None else name for row, name in enumerate(ids.to_list())]


def check_examples(frame: pl.DataFrame, *, where: str) -> None:
    """Check that ``frame`` is an example table.

    Args:
        frame: the table.
        where: what to call it in messages, usually its file.

    Raises:
        DataError: lists all problems: missing columns, wrong types, no rows, missing or repeated ids, missing labels,
            unknown splits. Rows are named by their ids.
    """
    problems = column_problems(frame, ("example_id", "label", "split"), where)
    if frame.is_empty():
        problems.append(f"{where}: the table has no rows")
    if problems:
        raise DataError(problems)
    names = row_names(frame["example_id"])
    problems = id_problems(frame["example_id"], where)
    problems += label_problems(frame["label"], names, where)
    problems += split_problems(frame["split"], names, where)
    if "true_label" in frame.columns and frame["true_label"].dtype != frame["label"].dtype:
        problems.append(
            f"{where}: column 'true_label' holds {frame['true_label'].dtype}, 'label' holds {frame['label'].dtype}; "
            "they must be of one type"
        )
    if problems:
        raise DataError(problems)


def content_hashes(frame: pl.DataFrame, payload_columns: Sequence[str]) -> pl.Series:
    """What every row holds in ``payload_columns``, as 32 hex digits of a sha256 each; String, in row order.

    Equal contents have equal hashes in every file and on every machine: the width of numbers does not count, names and
    order of the payload columns do. A column of paths hashes the paths, not the files.

    Raises:
        DataError: a payload column is missing.
    """
    problems = column_problems(frame, payload_columns, "content hashes")
    if problems:
        raise DataError(problems)
    parts = [
        (name.encode(), memoryview(buffer), offsets.tolist())
        for name in payload_columns
        for buffer, offsets in _parts(frame[name])
    ]
    hashes = []
    for row in range(frame.height):
        digest = hashlib.sha256()
        for name, buffer, offsets in parts:
            piece = buffer[offsets[row] : offsets[row + 1]]
            digest.update(b"%d %s %d " % (len(name), name, len(piece)))
            digest.update(piece)
        hashes.append(digest.hexdigest()[:32])
    return pl.Series("content_hash", hashes, dtype=pl.String)


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


def read_table(path: str | Path) -> pl.DataFrame:
    """Read a whole Parquet, CSV or JSONL file, told apart by the end of its name.

    In a CSV, whole numbers written with leading zeros (``007``) stay text: as numbers they would be other ids.

    Raises:
        DataError: no such file, not one of the formats, or its content cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError([f"{path}: there is no such file" if not path.exists() else f"{path}: this is not a file"])
    if path.suffix.lower() not in FORMATS:
        raise DataError([f"{path}: cannot read a {path.suffix or 'nameless'} table; use one of {', '.join(FORMATS)}"])
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path, glob=False)
        if path.suffix.lower() == ".csv":
            return _read_csv(path)
        # Opened here: polars would take brackets in the path for a pattern.
        with path.open("rb") as file:
            return pl.read_ndjson(file, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError([f"{path}: this is not a readable {path.suffix[1:]} file: {reason}"]) from error


def _read_csv(path: Path) -> pl.DataFrame:
    frame = pl.read_csv(path, infer_schema_length=None, glob=False)
    text = pl.read_csv(path, infer_schema=False, glob=False)
    numbers = [name for name in frame.columns if frame[name].dtype.is_integer()]
    codes = [text[name] for name in numbers if text[name].str.contains(r"^\s*[+-]?0[0-9]").any()]
    return frame.with_columns(codes)


def write_parquet_atomic(frame: pl.DataFrame, path: str | Path) -> None:
    """Write ``frame`` beside ``path`` and rename it: at any moment there is the old file, the new one or none.

    Raises:
        CurationError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            frame.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CurationError(f"{path}: cannot be written: {error}. Free space, or choose another folder") from error
    finally:
        aside.unlink(missing_ok=True)
