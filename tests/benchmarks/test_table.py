from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.table import Row, show


def test_figures_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BENCH_JSON", raising=False)
    monkeypatch.chdir(tmp_path)
    for seconds in (1.5, 2.0):
        show("reading", [Row("cat", {"seconds": seconds}), Row("ours", {"of cat": None})])
    printed = capsys.readouterr().out
    assert "seconds" in printed and "as JSON: build/benchmarks.jsonl" in printed
    rows = [json.loads(line) for line in Path("build/benchmarks.jsonl").read_text().splitlines()]
    assert [row.get("seconds") for row in rows] == [1.5, None, 2.0, None]
    assert all(row["table"] == "reading" and row["measured"] and row["machine"] for row in rows)
