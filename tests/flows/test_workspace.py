from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flows import workspace
from flows.cli import main
from flows.files import write_json

OLD, NEW, ODD = "train-0123456789abcdef", "index-0123456789abcdef", "my notes"


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """A stage last used 40 days ago, one used again today, and something that is no stage."""
    stages = tmp_path / "stages"
    long_ago = time.time() - 40 * workspace.DAY
    for name in (OLD, NEW, ODD):
        (stages / name).mkdir(parents=True)
        (stages / name / "model.ckpt").write_bytes(bytes(2_000_000))
        (stages / f"{name}.lock").touch()
        os.utime(stages / name / "model.ckpt", (long_ago, long_ago))
        os.utime(stages / name, (long_ago, long_ago))
    workspace.note_use(stages / NEW / "model.ckpt")
    return stages


def names(stages: Path) -> set[str]:
    return {path.name for path in stages.iterdir() if path.is_dir()}


def prune(stages: Path, *options: str) -> int:
    return main(["workspace", "prune", "--workspace", str(stages.parent), *options])


def test_only_what_no_run_has_used_for_long_is_deleted(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(stages, "--dry-run") == 0
    assert names(stages) == {OLD, NEW, ODD}
    assert "2.0 MB would be freed" in capsys.readouterr().out
    assert prune(stages, "--keep-days", "50") == 0 and names(stages) == {OLD, NEW, ODD}
    assert prune(stages) == 0
    assert names(stages) == {NEW, ODD} and not (stages / f"{OLD}.lock").exists()
    assert f"{OLD}  2.0 MB, last used 40 days ago" in capsys.readouterr().out
    assert prune(stages, "--keep-days", "0") == 0 and names(stages) == {ODD}


def test_a_use_of_the_stage_itself_is_noted_and_one_that_is_gone_is_not_made(stages: Path) -> None:
    workspace.note_use(stages / OLD)
    workspace.note_use(stages / "score-0123456789abcdef")
    assert prune(stages) == 0
    assert names(stages) == {OLD, NEW, ODD}


def test_nothing_is_deleted_while_a_run_is_at_work(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workspace.hold(stages.parent), workspace.hold(stages.parent):  # two runs may work at once
        assert prune(stages, "--keep-days", "0") == 2
    assert "a run is at work" in capsys.readouterr().err
    assert names(stages) == {OLD, NEW, ODD}
    assert prune(stages, "--keep-days", "0") == 0


def test_rows_of_no_state_are_deleted(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = stages.parent / "pools" / "job-0123"
    pool.mkdir(parents=True)
    write_json(pool / "states.json", {"states": [{"data": "a", "rows": "rows-a.parquet", "stages": [NEW]}]})
    for name in ("rows-a.parquet", "rows-b.parquet"):
        (pool / name).write_bytes(bytes(1_000_000))
    assert prune(stages, "--dry-run") == 0 and (pool / "rows-b.parquet").exists()
    assert "3.0 MB would be freed" in capsys.readouterr().out
    assert prune(stages) == 0
    assert sorted(path.name for path in pool.iterdir()) == ["rows-a.parquet", "states.json"]


def test_rows_of_a_pool_whose_first_run_was_killed_are_deleted(
    stages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = stages.parent / "pools" / "job-0123"
    pool.mkdir(parents=True)
    pool.with_suffix(".lock").touch()
    (pool / "rows-a.parquet").write_bytes(bytes(1_000_000))
    assert prune(stages, "--dry-run") == 0 and (pool / "rows-a.parquet").exists()
    assert "3.0 MB would be freed" in capsys.readouterr().out
    assert prune(stages) == 0 and not list(pool.parent.iterdir())


def test_a_folder_that_is_no_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workspace", "prune", "--workspace", str(tmp_path), "--keep-days", "-1"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} holds no stages" in said and "--keep-days: expected a number from 0" in said
    assert main(["workspace", "purge"]) == 2
    assert "did you mean prune?" in capsys.readouterr().err
