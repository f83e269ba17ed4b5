"""Small tables and decisions for the tests of the data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curation.data import TableData
from curation.errors import DataError


def feature_frame(rows: int = 40, classes: int = 2) -> pl.DataFrame:
    """Ids a0, a1, ..., integer labels in turn, two numeric columns that tell the labels apart, one of words."""
    rng = np.random.default_rng(0)
    label = np.arange(rows) % classes
    return pl.DataFrame(
        {
            "key": [f"a{row}" for row in range(rows)],
            "y": label,
            "width": rng.normal(size=rows) + 3 * label,
            "height": rng.integers(0, 100, size=rows),
            "note": ["seen"] * rows,
        }
    )


def write(frame: pl.DataFrame, folder: Path, name: str = "table.parquet") -> Path:
    path = folder / name
    {"parquet": frame.write_parquet, "csv": frame.write_csv, "jsonl": frame.write_ndjson}[path.suffix[1:]](path)
    return path


def table_problems(*arguments: Any, **options: Any) -> list[str]:
    """What ``TableData`` of these arguments finds wrong."""
    with pytest.raises(DataError) as error:
        TableData(*arguments, **options)
    return error.value.problems


def decisions(table: Mapping[object, tuple[str, object]], label_type: pl.DataType | type[pl.DataType]) -> pl.DataFrame:
    """Decisions from {id: (decision, suggested label)}."""
    return pl.DataFrame(
        {
            "example_id": list(table),
            "decision": [decision for decision, _ in table.values()],
            "suggested_label": pl.Series([label for _, label in table.values()], dtype=label_type),
        }
    )
