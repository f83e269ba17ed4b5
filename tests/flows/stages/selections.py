"""Small selections for the tests of select: their data and the arguments of their stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from flows.select_schema import SelectConfig

DIGITS: dict[str, Any] = {
    "data": {"class_path": "MixedDigits", "init_args": {"validation_fraction": 0.9}},
    "model": {"init_args": {"arch": "mlp"}},
    "target": {"examples": 20},
    "budget": {"rows": 20},
}


def arguments(folder: Path, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    made = SelectConfig.model_validate({"root": str(folder), **config}).model_dump(mode="json")
    return made | {"data_digest": None, "decisions": None, "index_asked": [], **more}


def ignore(what: str, done: int, total: int | None) -> None:
    """No progress is shown."""


def texts(folder: Path, name: str, rows: list[tuple[str, str, int]], **more: Any) -> dict[str, Any]:
    """A table as a data section."""
    frame = pl.DataFrame(rows, schema=["id", "text", "label"], orient="row")
    frame.with_columns(split=pl.Series(["train"] * (len(rows) - 2) + ["validation"] * 2)).write_csv(folder / name)
    return {
        "class_path": "TableData",
        "init_args": {"path": name, "label": "label", "id": "id", "text": "text", "split": "split", **more},
    }
