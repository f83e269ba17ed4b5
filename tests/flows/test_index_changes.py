"""`curate index append | purge | compact | refit` on an index of a user's own table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from flows.cli import main
from flows.schema import CleanConfig
from flows.stages import indexing
from flows.stages.common import new_model, open_data
from lorif_core import FactorStore, verify

pytestmark = pytest.mark.usefixtures("one_stage_process")


def table(rows: int) -> pl.DataFrame:
    """Rows told apart by ids, the first 20 of them for validation."""
    draw = np.random.default_rng(0)
    numbers = draw.normal(size=(100, 4))
    return pl.DataFrame(
        {
            "row": [f"customer-{i}" for i in range(100)],
            "split": ["validation"] * 20 + ["train"] * 80,
            "label": ["yes" if x > 0 else "no" for x in numbers[:, 0]],
            **{f"x{i}": numbers[:, i] for i in range(4)},
        }
    ).head(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, a checkpoint and an index of 60 training rows."""
    root = tmp_path_factory.mktemp("made")
    features = [f"x{i}" for i in range(4)]
    data = {"path": "t.csv", "label": "label", "id": "row", "split": "split", "features": features}
    tree: dict[str, Any] = {"data": {"class_path": "TableData", "init_args": data}}
    (root / "index.yaml").write_text(yaml.safe_dump(tree))
    table(80).write_csv(root / "t.csv")
    arguments = CleanConfig.model_validate(tree | {"root": str(root)}).model_dump(mode="json") | {"data_digest": None}
    model = new_model(arguments, open_data(arguments), seed=0)
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, root / "m.ckpt")
    arguments |= {"checkpoint": str(root / "m.ckpt")}
    indexing.run(arguments, root, lambda text, done, total: None)
    return root


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "index", tmp_path / "index")


def test_append_adds_what_the_data_has_more(
    made: Path, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(made / "index.yaml", tmp_path)
    table(100).filter(pl.col("row") != "customer-30").write_csv(tmp_path / "t.csv")
    command = ["index", "append", "--config", str(tmp_path / "index.yaml"), "--workspace", str(tmp_path / "workspace")]
    given = ["--index.path", str(index), "--model.checkpoint", str(made / "m.ckpt")]
    assert main([*command, *given]) == 0
    said = capsys.readouterr().out
    assert "20 rows added to the index of now 80" in said
    assert "1 rows of the index are not in the data (first: customer-30)" in said
    (log,) = (tmp_path / "workspace" / "stages").glob("append-*/log.txt")
    assert "INFO lorif_core.addition: appended 20 examples" in log.read_text()
    assert FactorStore.open(index).ids() == [f"customer-{i}" for i in range(20, 100)]
    assert verify(index) == []
    assert main([*command, *given, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["path"], again["added"], again["rows"], again["gone_ids"]) == (str(index), 0, 80, ["customer-30"])
    assert main([*command, *given[2:]]) == 2
    assert "index.path: name the index to add to" in capsys.readouterr().err
    assert main([*command, *given[:2]]) == 2
    assert "model.checkpoint: name the checkpoint" in capsys.readouterr().err
    other = torch.load(made / "m.ckpt", weights_only=False)
    for weight in other["state_dict"].values():
        weight.add_(1) if weight.is_floating_point() else None
    torch.save(other, tmp_path / "other.ckpt")
    assert main([*command, *given[:2], "--model.checkpoint", str(tmp_path / "other.ckpt")]) == 2
    assert "made from another model" in capsys.readouterr().err


def test_purge_removes_rows_and_says_which_it_did_not_find(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("customer-31\n\ncustomer-5\n")
    command = ["index", "purge", str(index), "--ids-file", str(tmp_path / "ids.txt")]
    assert main([*command, "--refit", "--ids", "customer-30", "customer-40"]) == 0
    said = capsys.readouterr().out
    assert "3 rows removed" in said and "not in the index: customer-5" in said
    assert len(FactorStore.open(index)) == 57 and verify(index) == []
    assert not any(b"customer-31" in path.read_bytes() for path in index.rglob("*.*"))
    assert main([*command, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["rows"] == 0 and done["not_found"] == ["customer-31", "customer-5"]
    assert main(["index", "info", str(index), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["purged_rows"] == 3 and facts["drift"] >= 0 and facts["refit_due"] is False


def test_compact_and_refit(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "compact", str(index), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merged"] == 0
    assert main(["index", "refit", str(index), "--memory-limit", "20 MB"]) == 0
    assert "fitted anew" in capsys.readouterr().out and verify(index) == []


def test_an_index_in_a_workspace_is_said_to_be_built_anew(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (index.parent / "manifest.json").write_text("{}")
    assert main(["index", "purge", str(index), "--ids", "customer-30"]) == 0
    assert "the next run of its configuration builds it anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "name the rows to remove"),
        (["--ids-file", "/nowhere"], "--ids-file: no such file: /nowhere"),
        (["--ids", *[f"customer-{i}" for i in range(20, 80)]], "remove the folder instead"),
        (
            ["--ids", "a", "--memory-limit", "none"],
            '--memory-limit: expected bytes, or a text such as "500 MB", got none',
        ),
        (["--ids", "a", "--frobnicate"], "unknown arguments: --frobnicate"),
    ],
)
def test_a_wrong_purge_is_refused(index: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "purge", str(index), *more]) == 2
    assert said in capsys.readouterr().err
    assert len(FactorStore.open(index)) == 60


@pytest.mark.parametrize("command", ["purge", "compact", "refit"])
def test_there_must_be_an_index(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", command, str(tmp_path)]) == 2
    assert "no index there" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{}")
    more = ["--ids", "a"] if command == "purge" else []
    assert main(["index", command, str(tmp_path), *more]) == 2
    assert "not a factor store's manifest" in capsys.readouterr().err


def test_estimate_says_what_a_build_would_take_and_builds_nothing(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", "build", "--config", str(made / "index.yaml"), "--workspace", str(tmp_path), "--estimate"]
    assert main([*command, "--index.bytes_per_example", "90"]) == 0
    said = capsys.readouterr().out
    assert "of 90 bytes an example" in said and "60 rows, " in said and "bytes a row" in said and "of memory" in said
    assert main([*command, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert expected["examples"] == 60 and expected["bytes"] > 0 and expected["memory"] > 0
    assert not list(tmp_path.glob("stages/index*")) and not list(tmp_path.glob("stages/train*"))


def test_a_budget_that_nothing_fits_is_told_before_training(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", "build", "--config", str(made / "index.yaml"), "--workspace", str(tmp_path)]
    assert main([*command, "--index.bytes_per_example", "5"]) == 2
    assert "index.bytes_per_example: expected at least" in capsys.readouterr().err
    assert not list(tmp_path.glob("stages/train*"))
