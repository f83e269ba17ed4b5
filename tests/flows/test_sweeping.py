from __future__ import annotations

import copy
import json
import sqlite3
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from curation.unlearning.searching import Search
from curation.unlearning.traces import Traces
from flows.files import digest_file
from flows.sweeping import Swept, Tally, sweep

ID = "quistorp-1"


@pytest.fixture
def search() -> Search:
    table = pl.DataFrame({"kind": ["id"], "trace": [ID.encode()], "anywhere": [True]})
    return Search(Traces(table, pl.DataFrame(), frozenset({"example_id"})))


def stage(home: Path, name: str, data: str, text: str = "") -> Path:
    folder = home / "stages" / name
    folder.mkdir(parents=True)
    (folder / "inputs.json").write_text(json.dumps({"data": data}))
    (folder / "log.txt").write_text(text)
    folder.with_suffix(".lock").touch()
    return folder


class Killed(BaseException):
    """What ends a process in the middle."""


def workspace_of(tmp_path: Path) -> tuple[list[Path], list[Path], Path]:
    """A workspace: (folders of stages that are to go, those that stay, the folder of a run)."""
    gone = [
        stage(tmp_path, "train-0000000000000001", "other"),  # named
        stage(tmp_path, "index-0000000000000002", "with"),  # made from the data with them
        stage(tmp_path, "query-0000000000000003", "other", f"asked {ID}"),
    ]
    stays = [stage(tmp_path, "train-0000000000000004", "other"), stage(tmp_path, "trace-0000000000000005", "with", ID)]
    run = tmp_path / "runs" / "clean-1"
    run.mkdir(parents=True)
    (run / "report.html").write_text(f"<p>{ID}</p>")
    (run / "summary.json").write_text("{}")
    (run / "tokenizer.json").write_text("{}")
    pl.DataFrame({"example_id": ["a", ID, "b"], "label": [1, 2, 3]}).write_parquet(run / "decisions.parquet")
    pl.DataFrame({"example_id": [ID]}).write_parquet(run / "flagged.parquet")
    for name, content in (("known", b"knows"), ("kept", b"knows"), ("other", b"does not")):
        (run / f"{name}.ckpt").write_bytes(content)
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("CREATE TABLE runs AS SELECT 'forget quistorp-1' AS name")
    connection.close()
    return gone, stays, run


def swept(home: Path, search: Search, tally: Tally) -> Swept:
    return sweep(
        home,
        search,
        stages=["train-0000000000000001"],
        data="with",
        models=[digest_file(home / "runs" / "clean-1" / "kept.ckpt")],
        files=[home / "runs" / "clean-1" / "tokenizer.json", home / "runs" / "clean-1" / "kept.ckpt"],
        keep={home / "runs" / "clean-1" / "kept.ckpt"},
        skip={home / "stages" / "trace-0000000000000005"},
        tally=tally,
    )


def test_what_holds_the_records_goes_and_the_rest_stays(tmp_path: Path, search: Search) -> None:
    gone, stays, run = workspace_of(tmp_path)
    done = swept(tmp_path, search, Tally({}, lambda: None))
    assert (done.stages, done.files, done.rows, done.models) == (3, 3, 1, 1)
    assert done.left == ["mlflow.db"], "which is not this tool's to change"
    assert not any(path.exists() for folder in gone for path in (folder, folder.with_suffix(".lock")))
    assert all(folder.is_dir() for folder in stays)
    assert {path.name for path in run.iterdir()} == {"summary.json", "decisions.parquet", "kept.ckpt", "other.ckpt"}
    assert pl.read_parquet(run / "decisions.parquet")["example_id"].to_list() == ["a", "b"]
    again = swept(tmp_path, search, Tally({}, lambda: None))
    assert (again.stages, again.files, again.rows, again.models) == (0, 0, 0, 0) and again.left == done.left
    assert again.files_searched == done.files_searched


@pytest.mark.parametrize("number", range(1, 10))
def test_a_sweep_that_was_killed_goes_on_and_counts_everything_once(
    number: int, tmp_path: Path, search: Search
) -> None:
    """Killed at one of the eight things that are noted: it is not removed yet, that before it is; or not killed at all."""
    gone, _, _ = workspace_of(tmp_path)
    written: list[dict[str, dict[str, int]]] = []

    def keep() -> None:
        written.append(copy.deepcopy(tally.counts))
        if len(written) == number:
            (gone[1] / "inputs.json").unlink(missing_ok=True)  # the first: as in the middle of its folder
            raise Killed

    tally = Tally({}, keep)
    with suppress(Killed):
        swept(tmp_path, search, tally)
    done = swept(tmp_path, search, Tally(written[-1], lambda: None))
    assert (done.stages, done.files, done.rows, done.models) == (3, 3, 1, 1)
    assert not any(folder.exists() for folder in gone) and done.left == ["mlflow.db"]
    assert ID not in json.dumps(written)
