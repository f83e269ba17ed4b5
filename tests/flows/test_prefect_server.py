"""Prefect's server of this process: one for all runs, and another where it has ended."""

from __future__ import annotations

from pathlib import Path

from flows.prefect_server import own_server


def test_runs_share_a_server_while_it_lives(tmp_path: Path) -> None:
    first = own_server(tmp_path / "log")
    try:
        assert own_server(tmp_path / "log") is first
        first.stop()
        second = own_server(tmp_path / "log")
        assert second is not first and not second.ended
    finally:
        own_server(tmp_path / "log").stop()
