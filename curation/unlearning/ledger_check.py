"""Whether a ledger's events follow from one another, and whether its tables say what they do."""

from __future__ import annotations

import sqlalchemy as sa

from curation.unlearning import ledger_tables as tables
from curation.unlearning.canonical import digest
from curation.unlearning.chain import Replay
from curation.unlearning.ledger_book import Book
from curation.unlearning.statuses import CLOSED


def problems(book: Book) -> list[str]:
    """One sentence a problem, each naming the event, batch or request; empty if there is none."""
    with book.transaction() as connection:  # so that nobody writes between two queries
        replay = Replay().follow(book.events(connection))
        said = replay.problems
        last = connection.execute(sa.select(tables.head)).one()
        if (last.number, last.hash) != (replay.number, replay.hash):
            said.append(
                f"the chain ends with event {replay.number}, and {last.number} were written: its end was cut off or added"
            )
        batches, requests = dict(replay.batches), dict(replay.requests)
        for row in connection.execute(sa.select(tables.batches)):
            if batches.pop(row.number, None) != row.status:
                said.append(f"batch {row.number} is {row.status!r}, which no event says")
        for row in connection.execute(sa.select(tables.requests)).all():
            expected = requests.pop(row.number, None)
            if expected != row.status:
                said.append(f"request {row.number} is {row.status!r}, which no event says")
            if expected is not None:
                said += _request(connection, row, replay)
        said += [f"batch {number} is missing, of which events tell" for number in batches]
        said += [f"request {number} is missing, of which events tell" for number in requests]
    return said


def _request(connection: sa.Connection, row: sa.Row[tuple[object, ...]], replay: Replay) -> list[str]:
    """What is wrong with the row of one request and its ids."""
    said, submitted = [], replay.submissions.get(row.number, {})
    changed = [name for name in ("dataset", "reason", "digest", "records") if submitted.get(name) != getattr(row, name)]
    if changed:
        said.append(f"request {row.number}: changed after it was submitted: {', '.join(changed)}")
    ids = tables.request_ids
    rows = connection.execute(sa.select(ids.c.hash, ids.c.id).where(ids.c.request == row.number)).all()
    if digest(sorted(one.hash for one in rows)) != submitted.get("hashes"):
        said.append(f"request {row.number}: its records were changed after it was submitted")
    closed, kept = row.status in CLOSED, sum(one.id is not None for one in rows)
    if closed and kept:
        said.append(f"request {row.number} is {row.status}, but {kept} of its ids are still kept in the clear")
    if closed and not row.erased:
        said.append(
            f"request {row.number} is {row.status}, but its ids may still be in the files: open the ledger once more"
        )
    if not closed and kept < len(rows):
        said.append(f"request {row.number} is {row.status}, but {len(rows) - kept} of its ids are gone")
    return said
