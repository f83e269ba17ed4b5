"""Stages in real child processes: what they refuse, how they fail, how they stop, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from flows.errors import InputError, StageError
from flows.runner import Runner
from flows.schema import CleanConfig
from flows.screen import Screen
from tests.flows.test_folder import flip

CONFIGS = Path(__file__).parents[2] / "configs"


def arguments(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    tree = {"data": {"class_path": "Digits"}, "root": str(tmp_path), **sections}
    more = {"data_digest": None, "decisions": None, "index_asked": []}
    return CleanConfig.model_validate(tree).model_dump(mode="json") | more


def table(tmp_path: Path, frame: pl.DataFrame, **init_args: Any) -> dict[str, Any]:
    frame.write_csv(tmp_path / "t.csv")
    return {"class_path": "TableData", "init_args": {"path": "t.csv", "label": "label", **init_args}}


def folder_of(runner: Runner, stage: str, inputs: dict[str, Any]) -> Path:
    return runner._folder(stage, runner._digest(stage, inputs))


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    screen = Screen(Console(quiet=True))
    with Runner(tmp_path_factory.mktemp("workspace"), CONFIGS, "code", screen) as runner:
        yield runner


GOOD = pl.DataFrame({"x": [0.1 * i for i in range(40)], "label": ["a", "b"] * 20})


@pytest.mark.parametrize(
    ("frame", "init_args", "said"),
    [
        (GOOD, {"path": "gone.csv"}, "gone.csv"),
        (GOOD, {"label": "lable"}, "lable"),
        (GOOD.with_columns(label=pl.lit("a")), {}, "every training row is labelled 'a'"),
        (GOOD.with_columns(x=pl.when(pl.col("x") > 3).then(pl.lit(float("nan"))).otherwise("x")), {}, "x"),
        (GOOD.with_columns(id=pl.lit(7)), {"id": "id"}, "7"),
    ],
    ids=["no file", "no such column", "one class", "NaN", "repeated ids"],
)
def test_wrong_data_is_refused_before_anything_is_computed(
    runner: Runner, tmp_path: Path, frame: pl.DataFrame, init_args: dict[str, Any], said: str
) -> None:
    job = arguments(tmp_path, data=table(tmp_path, frame, **init_args))
    with pytest.raises(InputError) as caught:
        runner.run("load", {"case": said}, job, keep=False)
    assert said in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"class_path": "ImageClasifier"}, "ImageClassifier"),
        ({"class_path": "nowhere.Module"}, "nowhere"),
        ({"init_args": {"hiden": [3]}}, "did you mean 'hidden'"),
        ({"checkpoint": "gone.ckpt"}, "gone.ckpt"),
    ],
)
def test_a_wrong_model_is_refused(runner: Runner, tmp_path: Path, model: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        runner.run("load", {"case": said}, arguments(tmp_path, model=model), keep=False)


def test_an_index_without_its_model_is_refused(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name it with model.checkpoint"):
        runner.run("load", {"case": "index"}, arguments(tmp_path, index={"path": str(tmp_path)}), keep=False)


HEADLESS = """
from lightning import LightningModule
from torch import nn

class Doubled(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, rows):
        return 2 * self.net(rows)
"""


def test_a_model_whose_logits_no_linear_layer_makes_is_refused_before_training(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "root", tmp_path)
    (tmp_path / "own_doubled.py").write_text(HEADLESS)
    data = table(tmp_path, GOOD.with_columns(y=pl.col("x") * -1))
    job = arguments(tmp_path, data=data, model={"class_path": "own_doubled.Doubled"})
    with pytest.raises(InputError, match=r"Doubled: the logits must come straight out of an nn.Linear"):
        runner.run("load", {"case": "head"}, job, keep=False)
    del job["signals"]  # as for an index alone, which can do without
    assert runner.run("load", {"case": "head"}, job, keep=False).values["n_train"] == 32


def test_a_finished_stage_is_not_run_again_until_a_file_of_it_is_damaged(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(runner.screen, "line", said.append)
    job = arguments(tmp_path, train={"max_epochs": 1})
    first = runner.run("train", {"a": 1}, job)
    assert not first.reused and first.files["checkpoint"].is_file()
    assert 0 <= first.values["metrics"]["val_accuracy"] <= 1
    assert not (first.folder / "last.ckpt").exists()
    assert runner.run("train", {"a": 1}, job).reused
    assert runner.find("train", {"a": 2}) is None
    job["checkpoint"] = str(first.files["checkpoint"])
    index = runner.run("index", {"a": 1}, job)
    (shard,) = (index.folder / "index" / "shards").iterdir()
    whole = shard.read_bytes()
    for stage, file in (("index", shard), ("index", index.folder / "index" / "curvature.safetensors")):
        flip(file)
        said.clear()
        assert runner.find(stage, {"a": 1}) is None
        assert not runner.run(stage, {"a": 1}, job).reused
        assert f"warning: {file} is damaged: its bytes are not those that were written; running the stage again" in said
    assert shard.read_bytes() == whole
    assert runner.run("index", {"a": 1}, job).reused
    flip(first.files["checkpoint"])
    assert not runner.run("train", {"a": 1}, job).reused


def test_a_stage_that_fails_says_why_in_a_line_and_keeps_its_traceback(runner: Runner, tmp_path: Path) -> None:
    # A learning rate that makes the loss overflow.
    job = arguments(tmp_path, train={"max_epochs": 2}, model={"init_args": {"lr": 1e30}})
    with pytest.raises(StageError) as caught:
        runner.run("train", {"nan": 1}, job)
    assert "loss is" in str(caught.value) and "epoch 1" in str(caught.value)
    assert caught.value.log is not None and "Traceback" in caught.value.log.read_text()
    assert runner.find("train", {"nan": 1}) is None


def test_a_killed_stage_is_reported_and_goes_on_where_it_was(runner: Runner, tmp_path: Path) -> None:
    job = arguments(tmp_path, train={"max_epochs": 12})
    worker, last = runner._worker(fresh=False), folder_of(runner, "train", {"kill": 1}) / "last.ckpt"

    def kill() -> None:
        wait_until(last.is_file)
        os.kill(worker.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(StageError, match=r"its process was killed .*Log: .*log.txt"):
        runner.run("train", {"kill": 1}, job)
    assert last.is_file() and not (last.parent / "manifest.json").exists()
    done = runner.run("train", {"kill": 1}, job)
    assert [epoch["epoch"] for epoch in done.values["history"]] == list(range(1, 13))


def test_a_stage_ends_when_its_parent_is_gone(runner: Runner, tmp_path: Path) -> None:
    """A closed standard input is all that a child sees of a parent that was killed."""
    job = arguments(tmp_path, train={"max_epochs": 10_000})
    worker, last = runner._worker(fresh=False), folder_of(runner, "train", {"orphan": 1}) / "last.ckpt"

    def abandon() -> None:
        wait_until(last.is_file)
        worker.close()

    threading.Thread(target=abandon, daemon=True).start()
    with pytest.raises(StageError):
        runner.run("train", {"orphan": 1}, job)
    assert not worker.alive and runner.find("train", {"orphan": 1}) is None
