"""What a purge may not come upon, and whose it is."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curation.data.text_tokens import TOKENIZER
from curation.unlearning.ledger import Ledger
from flows.errors import ConfigError
from flows.files import digest_file, read_json, write_json
from flows.outputs import RunFolder
from flows.purge_journal import Journal, forget_closed
from flows.purge_scope import naming, of_other_data, tokenizers
from flows.purging import _others, check_given, counted
from flows.unlearn_schema import UnlearnConfig
from flows.unlearning import UnlearnRun


def test_a_data_file_in_the_workspace_is_refused_before_a_purge_could_remove_it(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    for file in (tmp_path / "outside.csv", tmp_path / "workspace" / "inside.csv"):
        file.write_text("id,x\n")

    def config(path: str) -> UnlearnConfig:
        said = {"class_path": "TableData", "init_args": {"path": path, "id": "", "text": "x" * 300}}
        asked = {"ledger": True}
        return UnlearnConfig.model_validate(
            {"data": said, "request": asked, "purge": True, "workspace": tmp_path / "workspace", "root": tmp_path}
        )

    check_given(config("outside.csv"))
    for path in ("workspace/inside.csv", str(tmp_path / "workspace")):
        with pytest.raises(ConfigError, match="data.init_args.path: .* lies in the workspace"):
            check_given(config(path))


def test_a_journal_is_of_one_batch_whatever_other_ledgers_call_theirs(tmp_path: Path) -> None:
    journal = Journal(1, "a" * 64, "", "", [], "", "", None, [], [], {}, [], {}, {}).write(tmp_path)
    assert Journal.of(tmp_path, "a" * 64) == journal and Journal.of(tmp_path, "b" * 64) is None
    write_json(file := tmp_path / "purge" / f"{'a' * 64}.json", (read_json(file) or {}) | {"learnt": True})
    assert Journal.of(tmp_path, "a" * 64) == journal, "one that an older version wrote"
    (tmp_path / "purge" / f".{'a' * 64}.json.77.tmp").touch()  # of a write that was killed
    journal.remove(tmp_path)
    assert Journal.of(tmp_path, "a" * 64) is None and not list((tmp_path / "purge").iterdir())


def test_the_journal_of_a_closed_batch_is_removed_by_its_own_ledger(tmp_path: Path) -> None:
    ledger, other = Ledger(tmp_path / "ledger.db"), Ledger(tmp_path / "other.db")
    for one in (ledger, other):
        one.submit(["ann"], "asked to")
    batch = ledger.drain()
    assert batch is not None
    left = Journal(batch.number, batch.digest, "", "", [], "", "", None, [], [], {}, [], {}, {}).write(tmp_path)
    forget_closed(tmp_path, ledger)
    assert Journal.of(tmp_path, batch.digest) == left, "not closed yet"
    for status in ("weighed", "unlearned", "verified", "published"):
        batch = ledger.advance(batch, status, {})
    forget_closed(tmp_path, other)
    assert Journal.of(tmp_path, batch.digest) == left, "another's"
    forget_closed(tmp_path, ledger)
    assert Journal.of(tmp_path, batch.digest) is None


def test_mlflow_is_not_told_the_records_by_the_command_line(tmp_path: Path) -> None:
    run = UnlearnRun.__new__(UnlearnRun)
    run.command = "curate unlearn --config people --request.ids [ann]"
    run._folder = RunFolder(tmp_path / "run", "d", "output_dir")
    assert run.told_command == f"curate unlearn --config {tmp_path / 'run' / 'config.yaml'}"


def numbered_runs(home: Path) -> None:
    """Runs of a workspace, over files that are there."""
    for name in ("a.csv", "b.csv"):
        (home / name).write_text(name)
    (home / "copy.csv").write_text("a.csv")
    (home / "link.csv").symlink_to(home / "a.csv")
    for run, path in (
        ("own", "a.csv"),
        ("other", "b.csv"),
        ("linked", "link.csv"),
        ("copied", "copy.csv"),
        ("moved", "gone.csv"),
        ("digits", None),
    ):
        data = {"class_path": "TableData", "init_args": {} if path is None else {"path": path}}
        said = {"root": str(home), "data": data, "request": {"ids": [30, 7]}}
        write_json(home / "runs" / run / "config.yaml", said)
        for folder in (home / "runs" / run, home / "mlflow-artifacts" / run):
            write_json(folder / "summary.json", {"digests": {"data": f"data of {run}"}})
        write_json(home / "stages" / run / "inputs.json", {"data": f"data of {run}"})


def test_only_what_is_certainly_of_other_data_is_left_alone(tmp_path: Path) -> None:
    numbered_runs(tmp_path)
    places = ("runs", "mlflow-artifacts", "stages")
    apart = of_other_data(tmp_path, tmp_path / "runs" / "own")
    found = {(place, run.name) for place in places for run in (tmp_path / place).iterdir() if apart(run / "t.parquet")}
    assert found == {(place, "other") for place in places}
    assert not apart(tmp_path / "t.parquet")
    nothing = of_other_data(tmp_path, tmp_path / "runs" / "digits")
    assert not any(nothing(tmp_path / "runs" / run / "t.parquet") for run in ("own", "other"))


def test_configurations_that_name_a_record_are_found_whatever_its_id_is(tmp_path: Path) -> None:
    numbered_runs(tmp_path)
    runs = tmp_path / "runs"
    for name, said in (
        ("short", {"request": {"ids": []}, "retain": {"ids": ["ann"]}}),
        ("others", {"request": {"ids": [70, "an"]}, "train": {"seed": 7}}),
        ("named", {"request": {"where": {"column": "who", "values": ["Ann Lee"]}}}),
        ("namesake", {"request": {"where": {"column": "who", "values": ["Bea"]}}}),
        ("foreign", {"request": {"ids": 5, "where": 3}, "data": {"init_args": ["x"]}}),
    ):
        write_json(runs / name / "config.yaml", said)
    for name, found in (("named", [7, 8]), ("namesake", [8])):
        pl.DataFrame({"example_id": found}).write_parquet(runs / name / "records.parquet")
    (tmp_path / "config.yaml").write_text("- none: [")
    hits = naming(tmp_path, [7, "ann"], of_other_data(tmp_path, runs / "own"))
    named = ["copied", "digits", "linked", "moved", "named", "own", "short"]
    assert sorted(hits) == [runs / run / file for run in named for file in ("config.yaml", "run.json")]


def test_an_assessment_tells_no_position_of_the_records_and_keeps_those_of_others() -> None:
    def indexed(*rows: str) -> dict[str, object]:
        return {"agg_value": 1.5, "value_by_index": {row: {"score": 2.5} for row in rows}}

    panel = {"forget_Q_A_Prob": indexed("7", "30"), "retain_Q_A_Prob": indexed("7", "8"), "privleak": indexed()}
    panel["mia_loss"] = {"forget": indexed("30", "7"), "holdout": indexed("7", "1")}
    said = counted({"panels": {"after": panel}, "tests": [{"n": 7}]}, [30, 7])
    told = {
        "forget_Q_A_Prob": indexed("0", "1"),
        "mia_loss": {"forget": indexed("1", "0"), "holdout": indexed("7", "1")},
    }
    assert said == {"panels": {"after": panel | told}, "tests": [{"n": 7}]}


def test_tokenizers_of_earlier_purges_are_found_and_other_checkpoints_counted(tmp_path: Path) -> None:
    home = tmp_path / "ws"
    for name in ("runs/first", "runs/second", "mlflow-artifacts/1", "stages/trace-1", "models/hub"):
        write_json(home / name / TOKENIZER, {"model": {}} if name == "models/hub" else {"stands_for": "a"})
        (home / name / "model.ckpt").write_bytes(name.encode())
    own = home / "models" / ".." / "runs" / "second" / TOKENIZER
    for name, stands_for, path in (
        ("other", "b", "other.csv"),  # of another data set, which stays
        ("second", "a", "people.csv"),
        ("same", "a", "moved.csv"),
        ("changed", "b", "people.csv"),  # the file had other rows then
    ):
        (home / path).write_text(path)
        write_json(home / "runs" / name / TOKENIZER, {"stands_for": stands_for})
        said = {"root": str(home), "data": {"class_path": "QuestionTable", "init_args": {"path": path}}}
        write_json(home / "runs" / name / "config.yaml", said)
    assert {path.parent.name for path in tokenizers(home, own, of_other_data(home, own.parent))} == {
        "1",
        "first",
        "same",
        "changed",
    }
    kept, published = home / "models/hub/model.ckpt", digest_file(home / "runs/second/model.ckpt")
    assert _others(home, {kept}, {published}) == 3
