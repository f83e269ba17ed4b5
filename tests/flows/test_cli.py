from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import __version__
from flows.cli import main
from flows.parsers import Parser, guarded

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "lightning", "prefect", "mlflow", "polars", "numpy", "pydantic")


def test_help_answers_within_a_second_and_imports_nothing_heavy() -> None:
    best = 9.9
    for _ in range(3):  # of a machine that does other things too
        begin = time.perf_counter()
        result = subprocess.run([sys.executable, "-m", "flows.cli", "--help"], cwd=ROOT, capture_output=True, text=True)
        best = min(best, time.perf_counter() - begin)
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("clean", "index", "requests", "serve", "unlearn"))
    assert best < 1.0
    code = f"import sys, flows.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


def test_the_help_of_a_command_imports_no_torch_and_lists_every_key() -> None:
    code = (
        "import sys; from flows.cli import main; main(['clean', '--help']);"
        "print([name for name in ('torch', 'prefect', 'mlflow', 'lightning', 'polars') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
    assert "--decide.action drop|relabel|review [drop]" in result.stdout
    assert f"in {ROOT / 'configs'}:\n  clean_custom, clean_digits, clean_table, clean_text\n" in result.stdout


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("returns", [True, False], ids=["told", "raised"])
def test_an_interrupt_that_a_library_turned_into_an_error_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: signal.Signals, code: int, returns: bool
) -> None:
    def dispatch(tokens: list[str]) -> int:
        try:
            signal.raise_signal(stop)
        except KeyboardInterrupt:  # as pydantic does while it writes out a model
            if returns:
                return 1
            raise ValueError("Error calling function") from None
        return 0

    monkeypatch.setattr("flows.cli._dispatch", dispatch)
    assert main(["clean", "--config", "a b.yaml"]) == code
    said = capsys.readouterr().err
    assert said == "\nInterrupted. What is finished is kept; go on with: curate clean --config 'a b.yaml'\n"


def test_an_error_without_an_interrupt_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def dispatch(tokens: list[str]) -> int:
        raise ValueError("a fault of ours")

    monkeypatch.setattr("flows.cli._dispatch", dispatch)
    with pytest.raises(ValueError, match="a fault of ours"):
        main(["clean"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"curate {__version__}\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["clear"], "unknown command 'clear'; did you mean clean?"),
        (["index", "qeury"], "unknown command 'qeury'; did you mean query?"),
        (["frobnicate"], "known: approve, clean, index, requests, select, serve, unlearn, workspace"),
        (["clean"], "required: --config"),
        (["clean", "--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["clean", "--config", "clean_digits", "--train.epochs", "3"], "--train.epochs: unknown option"),
        (["clean", "--config", "clean_digits", "--train.max_epochs", "0"], "greater than or equal to 1, got 0"),
        (["serve", "--config", "serve", "--cron", "at noon"], "cron: expected five fields"),
        (["serve", "--config", "serve", "--timezone", "Mars/Olympus"], "got '0 3 * * *' and 'Mars/Olympus'"),
        (["index", "query", "--config", "index", "--rows", "a,b"], "--rows: expected positions"),
        (["index", "query", "--config", "index", "--rows", "0\N{SUPERSCRIPT TWO}"], "--rows: expected positions"),
        (["index", "info", "/nowhere"], "no index at /nowhere"),
        (["index", "info", __file__], f"{__file__} is a file; expected the folder of an index"),
        (["index", "verify", __file__], f"{__file__} is a file; expected the folder of an index"),
        (["index", "verify", "/nowhere"], "/nowhere: no index there"),
        (["index", "build", "--config", "index", "--index.path", "x"], "index.path: names an index that is there"),
        (["index", "query", "--config", "clean_table"], "clean_table.yaml: an index has no use for decide; left out"),
        (["clean", "--config", "clean_digits", "--trian.seed", "3", "--index.bits", "7"], "did you mean train.seed?"),
        (
            ["clean", "--config", "clean_digits", "--trian.seed", "3", "--index.bits", "7"],
            "should be 32, 16, 8, 4, 2 or 1, got 7",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_exit_code_2(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURATE_WORKSPACE", str(tmp_path / "workspace"))
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("option", ["--workspace", "--output-dir"])
def test_a_folder_that_cannot_be_written(
    option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURATE_WORKSPACE", str(tmp_path / "workspace"))
    (tmp_path / "file").write_text("x")
    assert main(["clean", "--config", "clean_digits", option, str(tmp_path / "file" / "out")]) == 2
    assert f"{tmp_path}/file/out cannot be written: Not a directory" in capsys.readouterr().err


def test_an_output_folder_with_foreign_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURATE_WORKSPACE", str(tmp_path / "workspace"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main(["clean", "--config", "clean_digits", "--output-dir", str(out)]) == 2
    assert "holds files of something else (notes.txt)" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", [["--help"], ["requests", "list", "--workspace", "ws"]])
def test_a_reader_of_the_output_that_leaves_is_no_failure(command: list[str], buffered: bool, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a7\n")
    told = ["--ids", str(tmp_path / "ids.txt"), "--reason", "asked to", "--workspace", str(tmp_path / "ws")]
    assert main(["requests", "submit", *told]) == 0
    reading, writing = os.pipe()
    os.close(reading)
    settings = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1", "PYTHONPATH": str(ROOT)}
    curate = [sys.executable, "-m", "flows.cli", *command]
    done = subprocess.run(curate, cwd=tmp_path, env=settings, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_connection_that_breaks_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    def run(options: argparse.Namespace, overrides: list[str]) -> int:
        one, other = socket.socketpair()
        other.close()
        with one:
            return one.send(b"x")

    assert guarded(Parser("curate"), [], run) == 1
    assert "Broken pipe" in capfd.readouterr().err
