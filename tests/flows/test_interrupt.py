"""A run that is stopped from outside, in processes of its own: what it leaves, and that the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.files import read_json
from tests.killing import children_of

ROOT = Path(__file__).parents[2]
SECONDS = 240.0


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_run_is_in_order_and_goes_on(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "flows.cli", "clean", "--config", "clean_digits", "--train.max_epochs", "20"]
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    }
    environment |= {
        "CURATE_WORKSPACE": str(tmp_path),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(ROOT),
    }
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "text": True}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    began = time.monotonic()
    while not list((tmp_path / "stages").glob("train-*/last.ckpt")):
        assert process.poll() is None and time.monotonic() - began < SECONDS
        time.sleep(0.1)
    started = children_of(process.pid)
    assert len(started) >= 2  # the stage and Prefect's server
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Interrupted. What is finished is kept; go on with: curate clean" in said and "Traceback" not in said
    assert not [pid for pid in started if alive(pid)]
    (folder,) = (tmp_path / "runs").iterdir()
    state = read_json(folder / "run.json") or {}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert state["status"] == "interrupted" and client.get_run(state["mlflow_run_id"]).info.status == "KILLED"

    assert subprocess.run(command, timeout=SECONDS, **options).returncode == 0
    summary = read_json(folder / "summary.json") or {}
    assert summary["status"] == "finished" and summary["mlflow_run_id"] == state["mlflow_run_id"]
    assert client.get_run(state["mlflow_run_id"]).info.status == "FINISHED"
