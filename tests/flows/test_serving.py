from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from flows.cli import main
from flows.files import read_json
from flows.prefect_server import _free_port

ROOT = Path(__file__).parents[2]


def test_the_flow_can_be_sent_to_another_process() -> None:
    """Prefect's serve pickles the flow and its parameters for the process of each run."""
    code = (
        "import sys, cloudpickle; flow = cloudpickle.load(sys.stdin.buffer);"
        "print(flow.validate_parameters({'config': {'data': {'class_path': 'Digits'}}}))"
    )
    from flows.clean import clean

    sent = cloudpickle.dumps(clean)
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=sent, capture_output=True, check=True)
    assert "Digits" in got.stdout.decode()


def test_a_job_on_a_schedule_has_no_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("data: {class_path: Digits}\noutput_dir: out\n")
    (tmp_path / "serve.yaml").write_text("clean: job.yaml\ncron: '* * * * *'\n")
    assert main(["serve", "--config", str(tmp_path / "serve.yaml")]) == 2
    assert "output_dir: a job on a schedule needs a folder for every state" in capsys.readouterr().err


@pytest.mark.slow
def test_a_schedule_cleans_once_then_finds_nothing_to_do_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    job, runs = tmp_path / "job.yaml", tmp_path / "workspace" / "runs"
    good = "data: {class_path: Digits}\ntrain: {max_epochs: 1}\nworkspace: workspace\nname: nightly\n"
    job.write_text(good)
    port = _free_port()
    (tmp_path / "serve.yaml").write_text(f"clean: job.yaml\ncron: '* * * * *'\nport: {port}\n")
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

    def wait_for(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not true():
            assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "out.txt").read_text()[-3000:]
            time.sleep(1)

    def summaries() -> list[dict[str, Any]]:
        return [summary for path in runs.glob("*/summary.json") if (summary := read_json(path)) is not None]

    try:
        wait_for(lambda: [summary["status"] for summary in summaries()] == ["unchanged"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    (path,) = runs.glob("*/run.json")
    again = shlex.split((read_json(path) or {})["command"])
    assert again == ["curate", "clean", "--config", str(path.parent / "config.yaml")]
    assert main(again[1:]) == 0
    assert [summary["status"] for summary in summaries()] == ["unchanged"]
