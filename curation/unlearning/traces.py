"""What only some records have: the texts, ids, rows and factors by which their remains are known in a file.

What a row that stays has too (a common answer, a template, a row of zeros) is evidence of nothing and is no trace.
N rows of an index; what is said of a row's bytes is as they lie in memory, little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from polars import selectors
from torch import Tensor

from curation.data import ExampleData
from curation.examples import write_parquet_atomic
from lorif_core import FactorStore

ID, TEXT, ROW, FACTORS = "id", "text", "row", "factors"
KINDS = (ID, TEXT, ROW, FACTORS)
ID_COLUMNS = ("example_id", "of", "like")
"""Columns of ids in the tables that jobs write."""
LEAST_ID, LEAST_TEXT = 6, 12
"""Characters of an id and of a text from which on it is no chance to find them in a file."""
PIECE = 40
"""Characters of a part by which an excerpt of a long text is known."""
LEAST_BYTES, LEAST_DISTINCT = 16, 8
"""Bytes of numbers, and different ones among them, from which on it is no chance to find them in a file."""
MOST_BYTES = 64
"""Bytes of a row of numbers that are looked for; the whole would take memory for nothing."""
TENSORS = 4
"""Tensors of an index in which a row is looked for: wherever the row is, all of them are."""


@dataclass(frozen=True)
class Traces:
    """What to look for.

    Attributes:
        table: columns ``kind`` (one of KINDS), ``trace`` (bytes; text in UTF-8) and ``anywhere`` (else it is too short, or
            part of what stays, and only counts as a whole cell of a column of ids).
        rows: the records' numbers in the user's table but for ids and labels, a column each; no columns where there are fewer
            than two.
        columns: names of the user's columns that hold the ids; none where rows are only numbered.
    """

    table: pl.DataFrame
    rows: pl.DataFrame
    columns: frozenset[str]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.table)

    def save(self, folder: Path) -> None:
        """Write them into a folder, in the clear."""
        write_parquet_atomic(pl.DataFrame({"column": sorted(self.columns)}), folder / "columns.parquet")
        write_parquet_atomic(self.rows, folder / "rows.parquet")
        write_parquet_atomic(self.table, folder / "traces.parquet")

    @classmethod
    def load(cls, folder: Path) -> Traces:
        """What `save` wrote."""
        columns = pl.read_parquet(folder / "columns.parquet")["column"].to_list()
        return cls(
            pl.read_parquet(folder / "traces.parquet"), pl.read_parquet(folder / "rows.parquet"), frozenset(columns)
        )


def traces_of(data: ExampleData, positions: Iterable[int], stores: Iterable[FactorStore] = ()) -> Traces:
    """The traces of some training rows.

    Args:
        data: with them.
        positions: among the training rows.
        stores: indexes of all training rows.
    """
    gone = sorted(positions)
    places = (data.examples["split"] == "train").arg_true().gather(gone)
    away = pl.Series(np.isin(np.arange(len(data.examples)), places.to_numpy()))
    tables = [data.examples, data.table]
    found = [_ids(data.examples["example_id"], away)]
    found.append(
        _texts([(table.filter(away.head(len(table))), table.filter(~away.head(len(table)))) for table in tables])
    )
    found.append(_numbers(ROW, _row_bytes(data, gone)))
    found += [_numbers(FACTORS, _factor_bytes(store, set(gone))) for store in stores]
    same = _same(data, "example_id")
    rows = _rows(data.table.drop(same | _same(data, "label")), away)  # labels differ where they were mended
    return Traces(pl.concat(found).unique(maintain_order=True), rows, frozenset(same))


def _same(data: ExampleData, name: str) -> set[str]:
    """The columns of the user's table that hold what a column of the examples does."""
    if name not in data.examples.columns:
        return set()
    cells = data.examples[name].head(len(data.table)).to_list()
    return {column.name for column in data.table.get_columns() if column.to_list() == cells}


def _rows(table: pl.DataFrame, away: pl.Series) -> pl.DataFrame:
    """The records' numbers, whole ones and flags as float64, all of a row together, where no row that stays has the same."""
    numbers = [name for name, dtype in table.schema.items() if dtype.is_numeric() or dtype == pl.Boolean]
    if len(numbers) < 2:  # one number is the same by chance
        return pl.DataFrame()
    gone, table = away.head(len(table)), table.select(numbers).with_columns((~selectors.float()).cast(pl.Float64))
    return table.filter(gone).join(table.filter(~gone), on=numbers, how="anti", nulls_equal=True)


def _table(kind: str, traces: list[bytes], anywhere: list[bool]) -> pl.DataFrame:
    columns = {"kind": [kind] * len(traces), "trace": traces, "anywhere": anywhere}
    return pl.DataFrame(columns, schema={"kind": pl.String, "trace": pl.Binary, "anywhere": pl.Boolean})


def _ids(ids: pl.Series, away: pl.Series) -> pl.DataFrame:
    """The records' ids; numbers, short ones and parts of others' only count as cells of ids."""
    gone = ids.filter(away).cast(pl.String)
    if ids.dtype != pl.String:
        return _table(ID, [one.encode() for one in gone], [False] * len(gone))
    own = _only(gone, [ids.filter(~away)])
    return _table(ID, [one.encode() for one in gone], [len(one) >= LEAST_ID and one in own for one in gone])


def _texts(tables: list[tuple[pl.DataFrame, pl.DataFrame]]) -> pl.DataFrame:
    """The cells of text, and parts of the long ones, that no row that stays holds, not even within a longer one.

    Args:
        tables: (rows that go, rows that stay) of each table.
    """
    cells = {cell for gone, _ in tables for column in _text_columns(gone) for cell in column}
    parts = {cell[i : i + PIECE] for cell in cells for i in range(0, len(cell) - PIECE + 1, PIECE)}
    long = pl.Series(sorted(one for one in cells | parts if len(one) >= LEAST_TEXT), dtype=pl.String)
    own = sorted(_only(long, [column for _, stay in tables for column in _text_columns(stay)]))
    return _table(TEXT, [one.encode() for one in own], [True] * len(own))


def _text_columns(table: pl.DataFrame) -> Iterator[pl.Series]:
    """Every column of text and of lists of text, as its texts."""
    for column in table.get_columns():
        while isinstance(column.dtype, pl.List | pl.Array):
            column = column.explode()
        if column.dtype == pl.String:
            yield column.drop_nulls()


def _only(texts: pl.Series, others: list[pl.Series]) -> set[str]:
    """Those of some texts that none of the others holds."""
    own = set(texts.to_list())
    for column in others:
        if own and len(column):
            own -= set(column.str.extract_many(sorted(own), overlapping=True).explode().drop_nulls().to_list())
    return own


def _numbers(kind: str, pairs: Iterator[tuple[list[bytes], Iterable[bytes]]]) -> pl.DataFrame:
    """Rows of numbers, by the first part of each that is no chance, where no row that stays has the same there.

    Args:
        kind: of the traces.
        pairs: (of the records, of the others), for each thing that a row has.
    """
    found: set[bytes] = set()
    for gone, stay in pairs:
        own = {part for part in map(known_part, gone) if part is not None}
        starts = {start for start, _ in own}
        for other in stay:
            own -= {(start, other[start : start + MOST_BYTES]) for start in starts}
        found |= {part for _, part in own}
    return _table(kind, sorted(found), [True] * len(found))


def known_part(row: bytes) -> tuple[int, bytes] | None:
    """(start, bytes) of the part of a row by which it is known; None where there is none, as in a row of zeros."""
    for start in range(0, len(row), MOST_BYTES):
        part = row[start : start + MOST_BYTES]
        if len(part) >= LEAST_BYTES and len(set(part)) >= LEAST_DISTINCT:
            return start, part
    return None


def _row_bytes(data: ExampleData, gone: list[int]) -> Iterator[tuple[list[bytes], Iterable[bytes]]]:
    """The tensors of each row: features, pixels, tokens."""
    away, rows = set(gone), data.train_dataset
    for name in tensors_of(rows[gone[0]] if gone else {}):
        yield (
            [tensor_bytes(tensors_of(rows[row])[name]) for row in gone],
            (tensor_bytes(tensors_of(rows[row])[name]) for row in range(len(rows)) if row not in away),
        )


def tensors_of(item: object) -> dict[object, Tensor]:
    """The tensors of a row by name or place."""
    named = item.items() if isinstance(item, dict) else enumerate(item if isinstance(item, tuple | list) else [item])
    return {name: part for name, part in named if isinstance(part, Tensor)}


def _factor_bytes(store: FactorStore, gone: set[int]) -> Iterator[tuple[list[bytes], Iterable[bytes]]]:
    """Each row of some tensors of a store's shards; those that stay are read one shard at a time."""
    names: dict[str, None] = {}
    for shard in store.manifest.shards:
        with store.opened(shard) as file:
            names |= dict.fromkeys(file.keys())
    for name in names:
        yield (
            [row for here, row in _rows_of(store, name) if here in gone],
            (row for here, row in _rows_of(store, name) if here not in gone),
        )


def _rows_of(store: FactorStore, name: str) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each row of one tensor."""
    for shard in store.manifest.shards:
        with store.opened(shard) as file:
            for row, values in enumerate(file.get_tensor(name)):
                yield shard.start + row, tensor_bytes(values)


def tensor_bytes(values: Tensor) -> bytes:
    """A tensor's numbers as they lie in memory."""
    return bytes(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
