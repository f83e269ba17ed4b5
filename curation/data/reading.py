"""Reading a user's Parquet, CSV, JSONL or JSON file, and saying in plain words why one cannot be read."""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from curation.errors import DataError
from curation.examples import Position, name_rows

FORMATS = (".parquet", ".csv", ".jsonl", ".ndjson", ".json")
OBJECT = 'one object, such as {"text": "fine", "label": "good"}'


def read_table(path: str | Path) -> pl.DataFrame:
    """Read a whole Parquet, CSV, JSONL or JSON (a list of objects) file, told apart by the end of its name.

    In a CSV, whole numbers written with leading zeros (``007``) stay text: as numbers they would be other ids.

    Raises:
        DataError: no such file, not one of the formats, or its content cannot be read; names the row or line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError([f"{path}: there is no such file" if not path.exists() else f"{path}: this is not a file"])
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError([f"{path}: cannot read a {path.suffix or 'nameless'} table; use one of {', '.join(FORMATS)}"])
    try:
        if suffix == ".parquet":
            return _named(pl.read_parquet(path, glob=False), path)
        _check_text(path)
        if suffix == ".csv":
            return _read_csv(path)
        # Opened here: polars would take brackets in the path for a pattern, and a byte order mark for content.
        with path.open("rb") as file:
            file.seek(len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0)
            if suffix == ".json":
                return _named(pl.read_json(file, infer_schema_length=None), path)
            return _named(pl.read_ndjson(file, infer_schema_length=None), path)
    except OSError as error:
        raise DataError([f"{path}: the file cannot be read: {error.strerror or error}"]) from error
    except pl.exceptions.PolarsError as error:
        explain = {".parquet": _why_no_parquet, ".csv": _why_no_csv, ".json": _why_no_json}.get(suffix, _why_no_jsonl)
        raise DataError([f"{path}: {explain(path)}"]) from error


def _read_csv(path: Path) -> pl.DataFrame:
    frame = pl.read_csv(path, infer_schema_length=None, glob=False)
    if frame.width == 1:
        other = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if sign in frame.columns[0]), None)
        if other is not None:
            raise DataError([f"{path}: the columns are separated by {other}; save the file with commas"])
    with path.open(newline="", encoding="utf-8-sig") as file:  # polars gives a repeated name another one
        _named(frame, path, next((row for row in csv.reader(file) if row), []))
    text = pl.read_csv(path, infer_schema=False, glob=False)
    numbers = [name for name in frame.columns if frame[name].dtype.is_integer()]
    codes = [text[name] for name in numbers if text[name].str.contains(r"^\s*[+-]?0[0-9]").any()]
    return frame.with_columns(codes)


def _named(frame: pl.DataFrame, path: Path, header: Sequence[str] | None = None) -> pl.DataFrame:
    """``frame``, when every column has a name of its own; ``header``: the names as the file has them.

    Raises:
        DataError: naming the columns that have none, or one that another has too.
    """
    names = frame.columns if header is None else header
    nameless = [str(place) for place, name in enumerate(names, start=1) if not name.strip()]
    repeated = [repr(name) for name, count in Counter(names).items() if count > 1 and name.strip()]
    problems = []
    if nameless:
        problems.append(
            f"{path}: no name for column {', '.join(nameless)} (counting from 1); name it or remove it (pandas writes row "
            "numbers so unless told index=False)"
        )
    if repeated:
        problems.append(f"{path}: more than one column is called {', '.join(repeated)}; rename or remove all but one")
    if problems:
        raise DataError(problems)
    return frame


def _check_text(path: Path) -> None:
    """DataError for what Excel and old programs write: an empty file, one that is not UTF-8, one without line feeds."""
    line, text, empty = 0, "", True
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError([f"{path}: line {line} is not UTF-8 text; save the file as UTF-8"]) from error
            empty = empty and not text.strip().strip("\ufeff")
    if empty:
        raise DataError([f"{path}: the file is empty"])
    if line == 1 and "\r" in text.strip():
        raise DataError(
            [
                f"{path}: the lines end with a carriage return alone, as old Mac programs write them; save the file with "
                "line feeds (LF or CRLF)"
            ]
        )


def _why_no_parquet(path: Path) -> str:
    return "this is not a Parquet file, or it is damaged or cut off; write it again"


def _why_no_csv(path: Path) -> str:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, strict=True)
        try:
            columns = len(next(rows))
            for position, row in enumerate(rows):
                if len(row) > columns:
                    return (
                        f"{name_rows([Position(position)])} has {len(row)} cells, the header has {columns}; put cells "
                        "that hold commas in double quotes"
                    )
        except csv.Error:
            return f"the quotes are not closed or not doubled at line {rows.line_num}; a quote inside a cell is written twice"
    return "this is not a CSV file with a header, commas between cells and double quotes around those that hold commas"


def _why_no_jsonl(path: Path) -> str:
    kinds: dict[str, tuple[type, int]] = {}
    with path.open(encoding="utf-8-sig") as file:
        for line, content in enumerate(file, start=1):
            if not content.strip():
                continue
            try:
                row = json.loads(content, parse_constant=_refuse)
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                return f"line {line} is not JSON ({reason}); each line must hold {OBJECT}"
            if not isinstance(row, dict):
                return f"line {line} holds a {_json_kind(row)}; each line must hold {OBJECT}"
            for key, value in row.items():
                if value is None:
                    continue
                kind, first = kinds.setdefault(key, (type(value), line))
                if type(value) is not kind and {type(value), kind} & {list, dict}:
                    return (
                        f"{key!r} is a {_json_kind(value)} in line {line}, but not in line {first}; the values of one "
                        "key must be of one kind"
                    )
    return f"this is not a JSONL file with values of one kind for each key; each line must hold {OBJECT}"


def _why_no_json(path: Path) -> str:
    advice = f"expected a list of objects: [{OBJECT[len('one object, such as ') :]}, ...]"
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except ValueError as error:
        return f"this is not JSON ({error}); {advice}"
    if not isinstance(rows, list):
        return f"this holds a {_json_kind(rows)}; {advice}"
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"{name_rows([Position(position)])} is a {_json_kind(row)}; {advice}"
    return f"the values of one key are not of one kind; {advice}"


def _json_kind(value: object) -> str:
    names = {list: "list", dict: "object", str: "text", bool: "true or false"}
    return names.get(type(value), "number" if value is not None else "null")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value; write null or leave the key out")
