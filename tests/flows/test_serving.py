from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from flows.config import find_config, load_config
from flows.prefect_server import _free_port
from flows.schema import CleanConfig

ROOT = Path(__file__).parents[2]


def test_the_flow_can_be_sent_to_another_process() -> None:
    """Prefect's serve pickles the flow and its parameters for the process of each run."""
    config = load_config(CleanConfig, find_config("clean_digits")).model_dump(mode="json")
    code = (
        "import sys, json, cloudpickle; flow = cloudpickle.load(sys.stdin.buffer);"
        f"config = flow.validate_parameters({{'config': json.loads({json.dumps(config)!r})}})['config'];"
        "print(config.data.class_path)"
    )
    from flows.clean import clean

    sent = cloudpickle.dumps(clean)
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=sent, capture_output=True, check=True)
    assert got.stdout.decode().strip() == "Digits"


@pytest.mark.slow
def test_a_schedule_runs_cleans_once_and_then_finds_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("data: {class_path: Digits}\ntrain: {max_epochs: 1}\nworkspace: workspace\n")
    (tmp_path / "serve.yaml").write_text(f"clean: job.yaml\ncron: '* * * * *'\nport: {_free_port()}\n")
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    }
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT)}
    with (tmp_path / "out.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", "--config", str(tmp_path / "serve.yaml")],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 420
        status = ""
        while status != "unchanged":
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "out.txt").read_text()[-3000:]
            time.sleep(1)
            for summary in (tmp_path / "workspace" / "runs").glob("*/summary.json"):
                status = json.loads(summary.read_text())["status"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert len(list((tmp_path / "workspace" / "runs").iterdir())) == 1
