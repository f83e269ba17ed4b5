"""An approval is of these records and no others, lasts as long as it says, and is acted on once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from curation.unlearning.ledger import Ledger
from curation.unlearning.salt import Salt
from flows import approval
from flows.cli import main
from flows.files import read_json, write_json
from flows.outputs import RunFolder
from flows.services import Services
from flows.unlearn_ending import EndingRun
from flows.unlearn_requests import Requests
from flows.unlearn_schema import RequestSection, UnlearnConfig
from flows.unlearning import UnlearnRun

RECORDS = {"example_id": ["ann", "bob"], "content": ["1" * 64, "2" * 64]}
SALT = Salt(bytes(32))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has asked."""
    folder = tmp_path / "runs" / "people"
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"command": "curate unlearn --config people"})
    (folder / "config.yaml").write_text("request: {ledger: false}\n")
    pl.DataFrame(RECORDS).write_parquet(folder / "records.parquet")
    assert approval.status(folder, digest(folder), None) == "awaiting_approval"
    return folder


def digest(folder: Path, follows: Sequence[str] = ()) -> str:
    return approval.digest_of(folder / "records.parquet", follows, SALT, "default")


def answer(folder: Path, *tokens: str, code: int = 0, given: str | None = None) -> None:
    workspace = str(folder.parents[1])
    assert (
        main(["approve", folder.name, "--digest", given or digest(folder), "--workspace", workspace, *tokens]) == code
    )


def test_an_answer_decides_and_is_acted_on_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert approval.status(run, digest(run), None) == "awaiting_approval"
    answer(run, "--reject", "--reason", "wrong people", "--by", "eve")
    assert approval.status(run, digest(run), None) == "rejected"
    answer(run, "--by", "eve")  # on second thoughts
    assert "Go on with: curate unlearn --config people" in capsys.readouterr().out
    assert approval.evidence_of(run) == {
        "digest": digest(run),
        "by": "eve",
        "decided": approval.entry_of(run)["decided"],
    }
    assert [approval.status(run, digest(run), None) for _ in range(2)] == ["approved"] * 2
    answer(run, "--reject", "--reason", "too late", code=2)
    assert "approved by eve, and acted on since" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"example_id": ["ann", "dan"]}, {"content": ["1" * 64, "3" * 64]}], ids=["id", "content"]
)
def test_other_records_are_asked_for_anew(
    run: Path, change: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    former = digest(run)
    answer(run, "--by", "eve")
    pl.DataFrame(RECORDS | change).write_parquet(run / "records.parquet")
    assert approval.status(run, digest(run), None) == "awaiting_approval"
    answer(run, code=2, given=former)
    assert "--digest: these are not the records" in capsys.readouterr().err


def test_the_digest_tells_nothing_to_who_has_no_salt_and_knows_no_order(run: Path) -> None:
    first = digest(run)
    pl.DataFrame(RECORDS).reverse().write_parquet(run / "records.parquet")
    assert digest(run) == first
    assert approval.digest_of(run / "records.parquet", (), Salt(bytes(31) + b"1"), "default") != first


def test_who_approves_is_told_what_follows_and_asked_anew_where_that_changes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ending = EndingRun.__new__(EndingRun)
    ending.services = cast(Services, SimpleNamespace(tracker=SimpleNamespace(uri="sqlite:///mlflow.db")))

    def follows(**options: Any) -> list[str]:
        said = {"data": {"class_path": "People"}, "request": {"ledger": True}, "workspace": tmp_path}
        ending.config = UnlearnConfig.model_validate(said | options)
        return ending.follows()

    named = {"register_as": "people"}
    ways = [
        follows(),
        follows(tracking=named),
        follows(tracking=named, publish={"alias": "other"}),
        follows(tracking=named, publish={"alias": None}),
        follows(tracking=named, purge=True),
        follows(tracking=named, purge=True, index={"path": "/index"}, model={"checkpoint": "/model"}),
        follows(tracking=named, fallback="retrain"),
        follows(tracking=named, purge=True, verify={"seeds": 0}),
    ]
    assert ways[-1] == [
        "Nothing is published, registered or removed: no model to compare with is trained (verify.seeds: 0)."
    ]
    assert len({digest(run, way) for way in ways}) == len(ways)
    shown = ways[4]
    assert approval.status(run, digest(run, shown), None, shown) == "awaiting_approval"
    assert approval.entry_of(run)["follows"] == shown and "the alias champion moves to it" in shown[0]
    answer(run, "--by", "eve", given=digest(run, shown))
    assert f"What is left of the records is removed from {tmp_path} for good." in capsys.readouterr().out
    assert approval.status(run, digest(run, shown), None, shown) == "approved"
    assert approval.status(run, digest(run, ways[2]), None, ways[2]) == "awaiting_approval"


@pytest.mark.parametrize(
    ("answered", "expected"), [(None, "expired"), ("approved", "expired"), ("rejected", "rejected")]
)
def test_a_question_and_an_approval_expire_a_rejection_does_not(run: Path, answered: str | None, expected: str) -> None:
    entry, ago = read_json(run / approval.APPROVAL), (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    entry |= {"asked": ago, "expires_after": 2.0, "decision": answered, "by": "eve", "reason": ""}
    write_json(run / approval.APPROVAL, entry | ({"decided": ago} if answered else {}))
    assert approval.status(run, digest(run), 2.0) == expected
    answer(run, "--by", "eve", code=2)
    write_json(run / approval.APPROVAL, entry | {"expires_after": 4.0, "acted_on": ago, "decision": "approved"})
    assert approval.status(run, digest(run), 4.0) == "approved", "what has begun goes on"


def test_second_thoughts_are_acted_on_where_the_request_is_still_open(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = cast(UnlearnRun, SimpleNamespace(folder=SimpleNamespace(path=run)))
    answer(run, "--reject", "--reason", "wrong people", "--by", "eve")
    assert UnlearnRun.settled(started, {"status": "rejected"})
    answer(run, "--by", "eve")
    assert not UnlearnRun.settled(started, {"status": "rejected"})
    write_json(run / "summary.json", {"status": "rejected", "batch": 1})
    answer(run, "--by", "eve", code=2)
    assert "which has closed its requests" in capsys.readouterr().err


def test_what_is_wrong_with_an_answer_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(run, "--reject", code=2)
    assert "--reason: a rejection needs one" in capsys.readouterr().err
    answer(run, "--by", "ann", code=2)
    assert "they name the record 'ann'" in capsys.readouterr().err
    taken = RunFolder(run, "d", "output_dir")
    taken.take()
    answer(run, code=2)
    taken.fail("failed")
    assert "a process is at work on" in capsys.readouterr().err
    approval.forget(run)
    answer(run, code=2)
    assert main(["approve", "nothing", "--digest", "d", "--workspace", str(run.parents[1])]) == 2
    told = capsys.readouterr().err
    assert "asks for no approval" in told and "RUN: no run at nothing" in told


def test_an_answer_stands_in_the_ledger_once(run: Path) -> None:
    file = run.parents[1] / "ledger.db"
    ledger = Ledger(file)
    ledger.submit(["ann", "bob"], "asked to")
    ledger.advance(ledger.drain(), "weighed")
    (run / "config.yaml").write_text(f"request: {{ledger: true, ledger_url: null}}\nworkspace: {run.parents[1]}\n")
    write_json(run / "summary.json", {"batch": 1})
    for _ in range(2):
        answer(run, "--by", "eve")
    (event,) = ledger.events("approval")
    assert event.batch == 1 and event.details["by"] == "eve" and event.details["digest"] == digest(run)
    assert not ledger.check()


@pytest.mark.parametrize(
    ("decision", "status"), [("rejected", "rejected"), (None, "no_action")], ids=["by a person", "all refused"]
)
def test_a_rejection_closes_the_requests_and_a_question_leaves_them(
    tmp_path: Path, decision: str | None, status: str
) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.submit(["ann"], "asked to")
    requests = Requests.claim(RequestSection(ledger=True), tmp_path)
    requests.advance("weighed", {})
    entry = {"decision": decision, "by": "eve", "decided": "now", "reason": "no", "digest": "d"}
    requests.close({"status": "awaiting_approval", "approval": entry, "verdict": None})
    requests.release()
    again = Requests.claim(RequestSection(ledger=True), tmp_path)
    assert again.number == 1 and again.ids == ["ann"]
    again.close({"status": "rejected", "approval": entry, "verdict": None})
    assert ledger.get(1).status == status and not ledger.ids(1)
    assert ledger.events(status)[0].details == (
        {} if decision is None else {k: v for k, v in entry.items() if k != "decision"}
    )
