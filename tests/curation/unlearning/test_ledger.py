"""Requests are noted once, handled once, and forgotten by name when they are done."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from curation.errors import DataError, LedgerError
from curation.unlearning.ledger import Ledger
from curation.unlearning.requests import Overlap
from curation.unlearning.statuses import CLOSED, FINISHED, TRANSITIONS

PEOPLE = [f"person-{number}" for number in range(40)]
WAY = ("weighed", "approved", "unlearned", "verified", "published")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def publish(ledger: Ledger) -> int:
    """Take what waits all the way; returns the batch."""
    batch = ledger.drain()
    assert batch is not None
    for status in WAY:
        batch = ledger.advance(batch, status)
    return batch.number


def bytes_of(ledger_file: Path) -> bytes:
    return b"".join(path.read_bytes() for path in ledger_file.parent.glob(f"{ledger_file.name}*"))


def test_a_request_goes_its_way(ledger: Ledger) -> None:
    request = ledger.submit(PEOPLE[:3], "GDPR art. 17")
    assert (request.number, request.status, request.records, request.repeated) == (1, "submitted", 3, False)
    batch = ledger.drain()
    assert batch is not None and batch.ids == tuple(PEOPLE[:3]) and batch.status == "claimed" and not batch.finished
    assert batch.digest == ledger.salt.digest(reversed(PEOPLE[:3]))
    batch = ledger.advance(batch, "weighed", {"effective_size": 2.5})
    assert batch.details["weighed"] == {"effective_size": 2.5} and ledger.get(1).status == "weighed"
    for status in WAY[1:]:
        batch = ledger.advance(batch, status)
    assert batch.finished and batch.ids == () and [one.status for one in ledger.list()] == ["published"]
    assert ledger.list("submitted") == [] and ledger.ids(1) == [] and len(ledger.hashes(1)) == 3
    assert [event.kind for event in ledger.events()] == ["created", "submitted", "claimed", *WAY]
    assert ledger.check() == [] and ledger.drain() is None


def test_the_same_ids_are_one_request_while_open_and_once_published(ledger: Ledger) -> None:
    first = ledger.submit(PEOPLE[:3], "asked")
    again = ledger.submit([*reversed(PEOPLE[:3]), PEOPLE[0]], "asked again")
    assert again.repeated and again.number == first.number and len(ledger.list()) == 1
    publish(ledger)
    assert ledger.submit(PEOPLE[:3], "once more").status == "published"
    assert not ledger.submit(PEOPLE[:3], "of other data", dataset="other").repeated
    assert len(ledger.events("submitted")) == 2


def test_a_rejected_set_can_be_asked_for_again(ledger: Ledger) -> None:
    ledger.submit(PEOPLE[:3], "asked")
    batch = ledger.drain()
    for status in ("weighed", "rejected"):
        batch = ledger.advance(batch, status)
    assert not ledger.submit(PEOPLE[:3], "asked again").repeated


def test_overlaps_are_told(ledger: Ledger) -> None:
    ledger.submit(PEOPLE[:3], "one")
    publish(ledger)
    ledger.submit(PEOPLE[5:8], "two")
    third = ledger.submit(PEOPLE[2:7], "three")
    assert third.overlaps == (Overlap(1, "published", 1), Overlap(2, "submitted", 2))


def test_all_that_waits_is_one_batch_and_a_limit_leaves_the_rest(ledger: Ledger) -> None:
    for number in range(4):
        ledger.submit(PEOPLE[number : number + 2], "asked")
    ledger.submit(["x"], "asked", dataset="other")
    batch = ledger.drain(limit=3)
    assert [one.number for one in batch.requests] == [1, 2, 3] and batch.ids == tuple(PEOPLE[:4])
    assert ledger.drain(limit=1) == batch
    other = ledger.drain("other")
    assert other.number == 2 and other.ids == ("x",)


def test_who_comes_after_a_crash_finds_the_same_batch_and_who_comes_meanwhile_none(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger.db")
    first.submit(PEOPLE[:2], "asked")
    batch = first.advance(first.drain(), "weighed")
    second = Ledger(tmp_path / "ledger.db")
    second.submit(PEOPLE[2:4], "asked meanwhile")
    with pytest.raises(LedgerError, match="another process is working"):
        second.drain()
    first._book.release("default")  # as the system does when the process ends
    assert second.drain() == batch
    assert second.advance(batch, "weighed") == batch  # a step repeated
    assert len(second.events("weighed")) == 1


@pytest.mark.parametrize("status", sorted(FINISHED))
def test_after_an_end_a_request_is_closed_or_waits_again(ledger: Ledger, status: str) -> None:
    ledger.submit(PEOPLE[:2], "asked")
    batch = ledger.drain()
    way = {"published": WAY[:-1], "verify_failed": WAY[:3], "rejected": WAY[:1], "expired": WAY[:1]}.get(status, ())
    for step in (*way, status):
        batch = ledger.advance(batch, step)
    request = ledger.get(1)
    assert batch.finished and request.outcome == status and ledger.check() == []
    if status in CLOSED:
        assert request.status == status and ledger.ids(1) == [] and ledger.drain() is None
    else:
        assert request.status == "submitted" and ledger.ids(1) == PEOPLE[:2]
        again = ledger.drain()
        assert again.number == 2 and again.ids == tuple(PEOPLE[:2]) and ledger.check() == []


def test_only_what_follows_is_allowed(ledger: Ledger) -> None:
    ledger.submit(PEOPLE[:2], "asked")
    batch = ledger.drain()
    for status in ("approved", "unlearned", "verified", "published", "submitted", "nonsense"):
        with pytest.raises(
            LedgerError, match=f"batch 1 is claimed: dry_run, no_action, weighed can follow, got '{status}'"
        ):
            ledger.advance(batch, status)
    ledger.advance(batch, "no_action")
    with pytest.raises(LedgerError, match="nothing can follow"):
        ledger.advance(batch, "weighed")
    with pytest.raises(LedgerError, match="no batch 7"):
        ledger.advance(7, "weighed")
    assert TRANSITIONS.keys() & FINISHED == set()


@pytest.mark.parametrize("reached", range(1, len(WAY)))
@pytest.mark.parametrize("end", ["rejected", "expired", "no_action", "dry_run"])
def test_a_batch_begun_again_with_other_options_can_end_in_every_way(ledger: Ledger, reached: int, end: str) -> None:
    ledger.submit(PEOPLE[:2], "asked")
    batch = ledger.drain()
    for step in WAY[:reached]:
        batch = ledger.advance(batch, step, {"run": "first"})
    assert ledger.advance(batch, WAY[reached - 1], {"run": "first"}) == batch, "repeated after a crash"
    batch = ledger.advance(batch, "weighed", {"run": "second"})
    assert batch.status == "weighed" and batch.details["weighed"] == {"run": "second"} and len(batch.details) == 2
    assert ledger.advance(batch, end).status == end and ledger.check() == []


def test_ids_are_resolved_against_the_data_and_what_was_removed_from_it(ledger: Ledger) -> None:
    ledger.submit([1, 2], "asked")
    publish(ledger)
    found = ledger.resolve(["2", 3, "4"], [3, 4, 5])
    assert found.present == [3, 4] and found.unlearned == ["2"]
    with pytest.raises(DataError, match=r"2 that the data 'default' does not have: 8, nobody"):
        ledger.resolve(["2", "nobody", "8"], [3, 4, 5])
    with pytest.raises(DataError, match="does not have: 1, 2"):
        ledger.resolve([1, 2], [3], dataset="other")


def test_a_request_can_be_refused_alone(ledger: Ledger, tmp_path: Path) -> None:
    ledger.submit(["nobody-1"], "asked")
    ledger.submit(PEOPLE[:2], "asked")
    ledger.submit(["nobody-2"], "asked")
    ledger.refuse(3, {"unknown": 1})
    batch = ledger.drain()
    assert ledger.refuse(1, {"unknown": 1}).status == "rejected"
    batch = ledger.drain()
    assert [one.number for one in batch.requests] == [2] and batch.ids == tuple(PEOPLE[:2])
    ledger.advance(batch, "weighed")
    assert b"nobody" not in bytes_of(tmp_path / "ledger.db") and ledger.check() == []
    for status in WAY[1:]:
        batch = ledger.advance(batch, status)
    assert (
        ledger.batch(1) == batch
        and ledger.get(1).status == "rejected"
        and ledger.get(2).status == "published"
        and ledger.check() == []
    )


def test_a_request_whose_records_left_the_data_meanwhile_can_be_refused(ledger: Ledger) -> None:
    for ids in (["gone-1"], ["gone-2"]):
        ledger.submit(ids, "asked")
    batch = ledger.drain()
    ledger.advance(batch, "weighed", {"records": 2})
    assert ledger.refuse(1, {"unknown": 1}).status == "rejected"
    again = ledger.advance(ledger.batch(batch.number), "weighed", {"records": 1})
    assert again.ids == ("gone-2",) and ledger.check() == []
    for status in WAY[1:]:
        ledger.advance(batch, status)
    assert [one.status for one in ledger.list()] == ["rejected", "published"] and ledger.check() == []
    with pytest.raises(LedgerError, match="request 2 is published"):
        ledger.refuse(2, {})


def test_a_batch_whose_requests_were_all_refused_needs_no_action(ledger: Ledger) -> None:
    ledger.submit(["nobody-1"], "asked")
    batch = ledger.drain()
    ledger.refuse(1, {"unknown": 1})
    assert ledger.drain().ids == () and ledger.advance(batch, "no_action").finished and ledger.check() == []


def test_the_bytes_of_removed_ids_leave_the_files(tmp_path: Path) -> None:
    ledger, file = Ledger(tmp_path / "ledger.db"), tmp_path / "ledger.db"
    gone = [f"gone-{number}-{'x' * (number % 60)}" for number in range(3000)]
    with closing(sqlite3.connect(file)) as reader:  # so that the log is not removed by the last to close
        reader.execute("SELECT count(*) FROM events").fetchone()
        ledger.submit(gone[:2000], "asked")
        ledger.submit(gone[1500:], "asked")
        ledger.submit(["stays-1"], "asked", dataset="other")
        assert bytes_of(file).count(b"gone-") >= 3500
        publish(ledger)
        assert b"gone-" not in bytes_of(file) and b"stays-1" in bytes_of(file)
    assert ledger.check() == []


def test_a_reader_that_keeps_the_bytes_is_told_and_the_next_to_open_erases_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.unlearning.ledger_tables.BUSY_SECONDS", 0.05)
    file = tmp_path / "ledger.db"
    ledger = Ledger(file)
    ledger.submit(["gone-1"], "asked")
    with closing(sqlite3.connect(file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        with pytest.raises(LedgerError, match=r"still in ledger.db-wal"):
            publish(ledger)
        assert b"gone-1" in bytes_of(file) and ledger.get(1).status == "published"
        assert any("open the ledger once more" in problem for problem in ledger.check())
    assert Ledger(file).check() == [] and b"gone-1" not in bytes_of(file)


def test_nothing_that_stays_may_name_a_record(ledger: Ledger) -> None:
    with pytest.raises(DataError, match="it names the record 'person-1'"):
        ledger.submit(PEOPLE[:3], "person-1 asked by mail")
    ledger.submit([*PEOPLE[:3], "17"], "GDPR art. 17, not person-12")
    batch = ledger.drain()
    for call in (ledger.advance, ledger.note):
        with pytest.raises(LedgerError, match="details name a record"):
            call(batch, "weighed" if call == ledger.advance else "purged", {"weights": {"person-2": 0.5}})
    ledger.note(batch, "purged", {"rows": 3})
    assert ledger.drain().details["purged"] == {"rows": 3} and ledger.check() == []
    with pytest.raises(ValueError, match="is a status"):
        ledger.note(batch, "published", {})


@pytest.mark.parametrize(
    ("ids", "reason", "said"),
    [
        ([], "asked", "at least one id"),
        (["a", " "], "asked", r"not empty, got \[' '\]"),
        ([1.5], "asked", "text or integers"),
        (["a"], " ", "reason: expected some text"),
    ],
)
def test_a_wrong_request_is_refused(ledger: Ledger, ids: list, reason: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ledger.submit(ids, reason)
    assert len(ledger.events()) == 1


def test_many_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        ledger = Ledger(tmp_path / "ledger.db")
        ledger.submit(["shared"], "asked")
        ledger.submit([f"own-{number}"], "asked")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    ledger = Ledger(tmp_path / "ledger.db")
    assert len(ledger.list()) == 7 and ledger.check() == []
    assert len(ledger.drain().ids) == 7


def test_the_salt_is_the_owners_alone_and_needed(tmp_path: Path) -> None:
    file, salt = tmp_path / "ledger.db", tmp_path / "ledger.db.salt"
    ledger = Ledger(file)
    assert salt.stat().st_mode & 0o777 == 0o600 and len(salt.read_bytes()) == 32
    assert salt.read_bytes() not in file.read_bytes()
    assert ledger.record_hash(5) == ledger.record_hash("5") != ledger.record_hash("5", "other")
    assert Ledger(tmp_path / "second.db").record_hash(5) != ledger.record_hash(5)
    with pytest.raises(LedgerError, match="not the one the ledger"):
        Ledger(file, salt=bytes(32))
    salt.chmod(0o644)
    with pytest.raises(LedgerError, match="open to other users"):
        Ledger(file)
    salt.chmod(0o600)
    kept = salt.read_bytes()
    salt.write_bytes(kept[:16])
    with pytest.raises(LedgerError, match="expected 32 bytes, got 16"):
        Ledger(file)
    salt.unlink()
    with pytest.raises(LedgerError, match="is missing: without it"):
        Ledger(file)
    assert not salt.exists()
    assert Ledger(file, salt=kept).check() == []


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but some text, long enough to be looked at\n" * 9)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger(tmp_path / "text")
    with pytest.raises(LedgerError, match="must outlive this process"):
        Ledger("sqlite://")
    with pytest.raises(LedgerError, match="not installed: pip install cx_Oracle"):
        Ledger("oracle+cx_oracle://user:secret@host/ledger")
    with pytest.raises(LedgerError, match="none of SQLAlchemy's"):
        Ledger("nothing://user:secret@host/ledger")
    with pytest.raises(LedgerError, match="no request 3"):
        Ledger(f"sqlite:///{tmp_path}/new.db").get(3)
