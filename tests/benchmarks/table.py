"""Benchmark rows: printed as a table, written as JSON beside it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

KEPT = Path("build/benchmarks.jsonl")
"""Where figures are written, a row a line, unless the variable BENCH_JSON names another file."""


@dataclass(frozen=True)
class Row:
    """One line: what was measured, and its figures."""

    name: str
    figures: dict[str, float | int | str | None] = field(default_factory=dict)


def show(title: str, rows: list[Row]) -> list[Row]:
    """Print the rows, and append them to a file of JSON lines with the time and the machine's name."""
    columns = list(dict.fromkeys(key for row in rows for key in row.figures))
    table = [["", *columns]] + [[row.name, *(_text(row.figures.get(c)) for c in columns)] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns) + 1)]
    print(f"\n{title}")
    for line in table:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
        )
    target = Path(os.environ.get("BENCH_JSON") or KEPT)
    target.parent.mkdir(parents=True, exist_ok=True)
    run = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
    }
    with target.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"table": title, "row": row.name, **run, **row.figures}) + "\n")
    print(f"as JSON: {target}")
    return rows


def _text(value: float | int | str | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
