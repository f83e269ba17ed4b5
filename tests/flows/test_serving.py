from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import polars as pl
import pytest

from flows.cli import main
from flows.files import read_json
from flows.prefect_server import _free_port

ROOT = Path(__file__).parents[2]


def test_the_flows_can_be_sent_to_another_process() -> None:
    """Prefect's serve pickles the flow and its parameters for the process of each run."""
    code = (
        "import sys, cloudpickle; flows = cloudpickle.load(sys.stdin.buffer);"
        "config = {'data': {'class_path': 'Digits'}, 'budget': {'rows': 7}};"
        "print(flows[0].validate_parameters({'config': {'data': config['data']}}));"
        "print(flows[1].validate_parameters({'config': config}))"
    )
    from flows.clean import clean
    from flows.select import select

    sent = cloudpickle.dumps([clean, select])
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=sent, capture_output=True, check=True)
    assert got.stdout.decode().count("Digits") == 2 and "rows=7" in got.stdout.decode()


@pytest.mark.parametrize(
    ("jobs", "said"), [("", "got neither"), ("clean: a.yaml\nselect: b.yaml\n", "got clean and select")]
)
def test_one_job_is_served(tmp_path: Path, jobs: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "serve.yaml").write_text(jobs + "cron: '* * * * *'\n")
    assert main(["serve", "--config", str(tmp_path / "serve.yaml")]) == 2
    assert f"expected the file of one job, clean or select; {said}" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "more"), [("clean", ""), ("select", "budget: {rows: 5}\n")])
def test_a_job_on_a_schedule_has_no_one_folder(
    tmp_path: Path, kind: str, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(f"data: {{class_path: Digits}}\noutput_dir: out\n{more}")
    (tmp_path / "serve.yaml").write_text(f"{kind}: job.yaml\ncron: '* * * * *'\n")
    assert main(["serve", "--config", str(tmp_path / "serve.yaml")]) == 2
    assert "output_dir: a job on a schedule needs a folder for every state" in capsys.readouterr().err


@contextmanager
def served(folder: Path, job: str) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """`curate serve` of a job every minute, in a process of its own; gives what waits for something to be true."""
    (folder / "serve.yaml").write_text(f"{job}\ncron: '* * * * *'\nport: {_free_port()}\n")
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
    }
    environment |= {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": str(ROOT)}
    with (folder / "out.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", "--config", str(folder / "serve.yaml")],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def wait_for(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not true():
            assert time.monotonic() < deadline and process.poll() is None, (folder / "out.txt").read_text()[-3000:]
            time.sleep(1)

    try:
        yield wait_for
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def summaries(folder: Path) -> list[dict[str, Any]]:
    """Of all runs in the workspace of a folder."""
    files = (folder / "workspace" / "runs").glob("*/summary.json")
    return [summary for path in files if (summary := read_json(path)) is not None]


@pytest.mark.slow
def test_a_schedule_cleans_once_then_finds_nothing_to_do_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    good = "data: {class_path: Digits}\ntrain: {max_epochs: 1}\nworkspace: workspace\nname: nightly\n"
    (tmp_path / "job.yaml").write_text(good)
    with served(tmp_path, "clean: job.yaml") as wait_for:
        wait_for(lambda: [summary["status"] for summary in summaries(tmp_path)] == ["unchanged"])
    (path,) = (tmp_path / "workspace" / "runs").glob("*/run.json")
    again = shlex.split((read_json(path) or {})["command"])
    assert again == ["curate", "clean", "--config", str(path.parent / "config.yaml")]
    assert main(again[1:]) == 0
    assert [summary["status"] for summary in summaries(tmp_path)] == ["unchanged"]


@pytest.mark.slow
def test_a_schedule_selects_from_a_pool_that_grows_and_indexes_only_what_is_new(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = pl.DataFrame(draw.normal(size=(90, 4)), schema=["a", "b", "c", "d"])
    rows = rows.with_columns(
        id=pl.Series([f"r{row}" for row in range(90)]),
        label=pl.Series([row % 2 for row in range(90)]),
        split=pl.Series(["validation" if row < 30 else "train" for row in range(90)]),
    )
    rows.head(70).write_csv(tmp_path / "pool.csv")
    (tmp_path / "job.yaml").write_text(
        "data: {class_path: TableData, init_args: {path: pool.csv, label: label, id: id, split: split}}\n"
        "target: {examples: 10}\nbudget: {rows: 12}\ntrain: {max_epochs: 1}\ncontrols: []\ncompare: {seeds: 0}\n"
        "workspace: workspace\nname: nightly\n"
    )

    def grown() -> list[dict[str, Any]]:
        return [one for one in summaries(tmp_path) if one["index"]["grown_from"] is not None]

    with served(tmp_path, "select: job.yaml") as wait_for:
        wait_for(lambda: len(summaries(tmp_path)) == 1)
        rows.write_csv(tmp_path / "grown.csv")
        (tmp_path / "grown.csv").rename(tmp_path / "pool.csv")
        wait_for(lambda: bool(grown()))
    (first,) = (one for one in summaries(tmp_path) if one["index"]["grown_from"] is None)
    (second,) = grown()
    assert (first["n_pool"], second["n_pool"]) == (40, 60) == (first["index"]["rows"], second["index"]["rows"])
    assert second["index"]["grown_from"] == first["index"]["digest"]
