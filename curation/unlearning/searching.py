"""Whether traces of removed records are left in files: in their bytes, and within what compresses or splits those.

Bytes are looked through as they lie; text also as JSON and HTML escape it. Beside that Parquet is read by cells, SQLite by
rows (its long texts lie in pieces), and gzip and zip are unpacked.
"""

from __future__ import annotations

import gzip
import html
import io
import json
import os
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import polars as pl

from curation.unlearning.traces import ID, ID_COLUMNS, ROW, TEXT, Traces

Readable = IO[bytes] | gzip.GzipFile
CHUNK = 1 << 24
"""Bytes looked through at once."""


@dataclass
class Found:
    """What a search came to.

    Attributes:
        files: how many were looked through.
        bytes: of how many bytes.
        where: file with a trace -> kinds of traces in it.
    """

    files: int = 0
    bytes: int = 0
    where: dict[Path, set[str]] = field(default_factory=dict)


def _never(path: Path) -> bool:
    return False


class Search:
    """Looks for traces; says where they are, never what they are.

    Args:
        traces: what to look for.
        apart: whether a file is known to be about other data, in which the same number is another row's; ids that a column of the
            user's holds are looked for there, too.
    """

    def __init__(self, traces: Traces, apart: Callable[[Path], bool] = _never) -> None:
        self._apart = _never if traces.columns else apart
        self._kinds: dict[str, str] = {}  # pattern, each byte a character -> its kind
        self._cells = {kind: set[str]() for kind in (ID, TEXT)}
        self._binary: set[bytes] = set()
        self._rows, self._columns = traces.rows, {*ID_COLUMNS, *traces.columns}
        self._casts: Any = dict(traces.rows.schema)  # polars' own type of it is its own
        for kind, trace, anywhere in traces.table.iter_rows():
            if kind in self._cells:
                self._cells[kind].add(trace.decode())
            else:
                self._binary.add(trace)
            if anywhere:
                written = _written(trace.decode()) if kind in (ID, TEXT) else [trace]
                self._kinds |= {one.decode("latin-1"): kind for one in written}
        self._patterns = sorted(self._kinds)
        self._texts = sorted(
            {one.encode("latin-1").decode() for one, kind in self._kinds.items() if kind in self._cells}
        )
        self._longest = max(map(len, self._patterns), default=1)

    def folder(self, root: Path, skip: Iterable[Path] = ()) -> Found:
        """Look through every file under a folder but those that are or lie in one of ``skip``; links are not followed."""
        found, left_out = Found(), set(skip)
        for place, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if Path(place, name) not in left_out)
            for name in sorted(names):
                path = Path(place, name)
                if path in left_out or path.is_symlink() or not path.is_file():
                    continue
                found.files += 1
                found.bytes += path.stat().st_size
                kinds = self.file(path)
                if kinds:
                    found.where[path] = kinds
        return found

    def file(self, path: Path) -> set[str]:
        """Kinds of the traces in one file."""
        with path.open("rb") as file:
            found = self._stream(file)
            file.seek(0)
            start = file.read(16)
            file.seek(0)
            if start.startswith(b"\x1f\x8b"):
                with gzip.open(file) as opened:
                    found |= self._packed(opened)
            elif start.startswith(b"PK") and zipfile.is_zipfile(file):
                found |= self._archive(file)
            elif start.startswith(b"PAR1"):
                found |= self._parquet(path)
            elif start.startswith(b"SQLite format 3"):
                found |= self._database(path)
        return found

    def table(self, path: Path) -> tuple[pl.DataFrame, pl.Series] | None:
        """A Parquet file's table and which of its rows hold a trace, bool [n]; None where it is none."""
        try:
            frame = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError):
            return None
        return frame, self.rows(frame, apart=self._apart(path))

    def rows(self, frame: pl.DataFrame, apart: bool = False) -> pl.Series:
        """Which rows of a table hold a trace, bool [n]; a number is no id in a table of other data (``apart``)."""
        hits = pl.Series([False]).new_from_index(0, len(frame))
        for column in frame.get_columns():
            hits = hits | self._hits(column, not apart and column.name in self._columns)
        names = self._rows.columns
        if names and set(names) <= set(frame.columns):
            same = frame.select(pl.int_range(pl.len()).alias("\0row"), *names).cast(self._casts, strict=False)
            both = same.join(self._rows, on=names, how="semi", nulls_equal=True)["\0row"]
            hits = hits | same["\0row"].is_in(both.to_list())
        return hits

    def _hits(self, column: pl.Series, ids: bool) -> pl.Series:
        dtype, none = column.dtype, pl.Series([False]).new_from_index(0, len(column))
        if "String" in str(dtype) or "Categorical" in str(dtype):
            nested = dtype.is_nested()
            texts = (
                pl.Series([str(cell) for cell in column.to_list()], dtype=pl.String)
                if nested
                else column.cast(pl.String)
            )
            cells = self._cells[TEXT] | (self._cells[ID] if ids else set())
            hits = texts.is_in(sorted(cells))  # an id that is a word or a number is no id in another column
            return (hits | texts.str.contains_any(self._texts) if self._texts else hits).fill_null(False)
        if dtype.is_integer() and ids:
            return column.cast(pl.String).is_in(sorted(self._cells[ID])).fill_null(False)
        if dtype == pl.Binary and self._binary:
            return column.is_in(sorted(self._binary)).fill_null(False)
        return none

    def _stream(self, file: Readable) -> set[str]:
        """Kinds in what a file gives; a trace may lie across two chunks."""
        found, before = set[str](), b""
        while self._patterns and (chunk := file.read(CHUNK)):
            found |= self._text((before + chunk).decode("latin-1"))
            before = (before + chunk)[-self._longest :]
        return found

    def _text(self, text: str) -> set[str]:
        """Kinds in some bytes, each a character."""
        series = pl.Series([text])
        if not self._patterns or not series.str.contains_any(self._patterns)[0]:
            return set()
        return {self._kinds[one] for one in series.str.extract_many(self._patterns, overlapping=True)[0]}

    def _packed(self, file: Readable) -> set[str]:
        try:
            return self._stream(file)
        except (OSError, EOFError, zlib.error):  # it only begins like one; its bytes were looked through
            return set()

    def _archive(self, file: IO[bytes]) -> set[str]:
        """Kinds in the members of a zip file that are compressed."""
        found = set[str]()
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED and not member.flag_bits & 1:
                    with archive.open(member) as opened:
                        found |= self._packed(opened)
        return found

    def _parquet(self, path: Path) -> set[str]:
        table = self.table(path)
        return {ROW} if table is not None and table[1].any() else set()

    def _database(self, path: Path) -> set[str]:
        """Kinds in the cells of a database that nobody is changing."""
        found = set[str]()
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            try:
                tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                for table in tables:
                    quoted = table.replace('"', '""')
                    for cells in _batches(connection.execute(f'SELECT * FROM "{quoted}"')):
                        found |= self._stream(io.BytesIO(cells))
            except sqlite3.DatabaseError:
                return found
        return found


def _batches(rows: Iterable[tuple[object, ...]]) -> Iterator[bytes]:
    """The text and bytes of some rows, about a chunk at a time."""
    parts, size = [], 0
    for row in rows:
        for cell in row:
            if isinstance(cell, str | bytes):
                parts.append(cell if isinstance(cell, bytes) else cell.encode())
                size += len(cell)
        if size > CHUNK:
            yield b"\0".join(parts)
            parts, size = [], 0
    yield b"\0".join(parts)


def _written(text: str) -> list[bytes]:
    """The ways in which files write some text."""
    ways = {text, html.escape(text), html.escape(text, quote=False)}
    ways |= {json.dumps(text, ensure_ascii=escaped)[1:-1] for escaped in (True, False)}
    return sorted(way.encode() for way in ways)
