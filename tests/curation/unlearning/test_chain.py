"""Whatever is changed behind the ledger's back is found, and named."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from curation.unlearning.canonical import canonical, digest
from curation.unlearning.chain import event_hash
from curation.unlearning.ledger import Ledger
from tests.curation.unlearning.test_ledger import PEOPLE, publish


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of a published request and one that waits: 9 events."""
    file = tmp_path_factory.mktemp("made") / "ledger.db"
    ledger = Ledger(file)
    ledger.submit(PEOPLE[:3], "first")
    publish(ledger)
    ledger.submit(PEOPLE[3:5], "second")
    assert len(ledger.events()) == 9 and ledger.check() == []
    return file.parent


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy") / "ledger.db"


def tamper(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TRIGGER events_refuse_update")
        connection.execute("DROP TRIGGER events_refuse_delete")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("statement", ["UPDATE events SET kind = 'x'", "DELETE FROM events WHERE number = 9"])
def test_the_database_refuses_to_change_events(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE events SET details = replace(details, 'first', 'other') WHERE number = 2", "event 2 (submitted, "),
        ("UPDATE events SET time = '2001' WHERE number = 5", "event 5 (approved, 2001): its content was changed"),
        ("DELETE FROM events WHERE number = 4", "event 5: expected number 4; events between are missing"),
        ("DELETE FROM events WHERE number = 9", "the chain ends with event 8, and 9 were written"),
        ("UPDATE requests SET status = 'published' WHERE number = 2", "request 2 is 'published', which no event says"),
        ("UPDATE requests SET reason = 'none' WHERE number = 1", "request 1: changed after it was submitted: reason"),
        ("DELETE FROM requests WHERE number = 2", "request 2 is missing"),
        ("UPDATE batches SET status = 'verified'", "batch 1 is 'verified', which no event says"),
        ("DELETE FROM batches", "batch 1 is missing"),
        ("UPDATE request_ids SET hash = 'x' WHERE id = 'person-3'", "request 2: its records were changed"),
        (
            "UPDATE request_ids SET id = 'person-0' WHERE id IS NULL",
            "request 1 is published, but 3 of its ids are still kept",
        ),
        ("UPDATE request_ids SET id = NULL", "request 2 is submitted, but 2 of its ids are gone"),
        ("UPDATE head SET number = 8", "the chain ends with event 9, and 8 were written"),
    ],
)
def test_a_change_is_found(file: Path, statement: str, said: str) -> None:
    ledger = Ledger(file)
    tamper(file, statement)
    assert any(said in problem for problem in ledger.check()), ledger.check()


def test_a_change_whose_hash_was_made_to_fit_breaks_the_next_link(file: Path) -> None:
    ledger = Ledger(file)
    event = ledger.events()[3]
    changed = event_hash(event.number, "2001", event.kind, event.request, event.batch, event.details, event.previous)
    tamper(file, f"UPDATE events SET time = '2001', hash = '{changed}' WHERE number = 4")
    assert ledger.check() == ["event 5: does not follow from event 4 as that now stands"]


def test_one_value_has_one_text() -> None:
    value = {"b": [1, 2.5, -0.1, 1e-300, None, True], "a": {"\N{SNOWMAN}": "x"}}
    assert canonical(value) == '{"a":{"\N{SNOWMAN}":"x"},"b":[1,2.5,-0.1,1e-300,null,true]}'.encode()
    assert digest(value) == digest(dict(reversed(value.items())))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [0.5, float("nan")]}, r"value.a\[1\]: nan has no JSON"),
        ({"a": float("inf")}, "value.a: inf has no JSON"),
        ({2: 1}, "expected strings as keys, got 2"),
        ({"a": {1, 2}}, "value.a: expected plain values, got set"),
        ("\ud800", "not a text that UTF-8 can hold"),
    ],
)
def test_what_has_no_canonical_text_is_refused(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        canonical(value)
