"""The ledger: who asked for which records to be removed, and what became of it.

Requests wait until a batch claims them; a batch goes through the statuses of `statuses.py`, one transaction a step, so that
after a crash at any moment the next process finds the same batch where it was. Events are append-only and chained by hash.
An id is kept in the clear only while its request is open; what stays is its hash with a secret salt (HMAC-SHA256), by which
it is recognised if it is asked for again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from curation.errors import DataError, LedgerError
from curation.unlearning import ledger_check
from curation.unlearning import ledger_tables as tables
from curation.unlearning.canonical import digest as plain_digest
from curation.unlearning.chain import Event
from curation.unlearning.ledger_book import Book, request_of
from curation.unlearning.requests import DATASET, Batch, Overlap, Request, Resolved, checked_ids, named_in
from curation.unlearning.salt import Salt
from curation.unlearning.statuses import (
    CLAIMED,
    CLOSED,
    FINISHED,
    NO_ACTION,
    PUBLISHED,
    REJECTED,
    SUBMITTED,
    TRANSITIONS,
    WEIGHED,
    request_status,
)


class Ledger:
    """The requests of one workspace.

    Any number of processes may use it at once; of those that `drain` one data set, one at a time.

    Args:
        where: path of the SQLite file, or a URL of SQLAlchemy's.
        salt: the secret; by default the file beside the database, made with it.

    Raises:
        LedgerError: the database or its salt cannot be opened, or the salt is another's.
    """

    def __init__(self, where: str | Path, salt: bytes | None = None) -> None:
        self._book = Book(where, salt)

    # What is asked for

    def submit(self, ids: Iterable[str | int], reason: str, dataset: str = DATASET) -> Request:
        """Note a request; the same set of ids, still open or published, is the same request and noted once.

        Raises:
            DataError: no ids, no reason, or a reason that names one of them, which would outlive its erasure.
        """
        names = checked_ids(ids)
        problems = [
            f"{what}: expected some text"
            for what, text in (("reason", reason), ("dataset", dataset))
            if not text.strip()
        ]
        named = named_in(f"{reason}\n{dataset}", names)
        if named is not None:
            problems.append(
                f"reason: it names the record {named!r}; reasons are kept for good, ids only until they are removed"
            )
        if problems:
            raise DataError(problems)
        hashes = {self.record_hash(one, dataset): one for one in names}
        whole, table = self.salt.digest(names, dataset), tables.requests
        with self._book.transaction() as connection:
            same = sa.and_(table.c.digest == whole, table.c.status.not_in([REJECTED, NO_ACTION]))
            row = connection.execute(sa.select(table).where(same)).first()
            if row is not None:
                return replace(request_of(row), repeated=True, overlaps=self._overlaps(connection, hashes, row.number))
            number = self._book.next_number(connection, table)
            overlaps = self._overlaps(connection, hashes, number)
            details = {"dataset": dataset, "reason": reason, "digest": whole, "records": len(names)}
            event = self._book.append(
                connection, SUBMITTED, number, None, details | {"hashes": plain_digest(sorted(hashes))}
            )
            values = {"number": number, "submitted": event.time, "status": SUBMITTED, "erased": False}
            connection.execute(sa.insert(table).values(**values, **details))
            rows = [{"request": number, "hash": key, "id": one} for key, one in hashes.items()]
            connection.execute(sa.insert(tables.request_ids), rows)
            row = connection.execute(sa.select(table).where(table.c.number == number)).one()
        return replace(request_of(row), overlaps=overlaps)

    def refuse(self, request: int, details: Mapping[str, Any]) -> Request:
        """Reject one request that waits or is being worked on (its ids are unknown, say), and erase its ids.

        The others of its batch stay; whoever works on the batch weighs them anew.

        Raises:
            LedgerError: there is none of that number, it is past that, or `details` name an id.
        """
        with self._book.transaction() as connection:
            row = self._book.row(connection, request)
            if row.status != REJECTED:
                if row.status != SUBMITTED and row.status not in TRANSITIONS:
                    raise LedgerError(
                        f"request {request} is {row.status}: only one that waits or is being worked on can be refused"
                    )
                self._book.refuse_ids(connection, [request], details)
                self._book.append(
                    connection, "refused", request, row.batch if row.status != SUBMITTED else None, details
                )
                self._book.close(connection, [request], REJECTED)
        self._book.scrub()
        return self.get(request)

    def list(self, status: str | None = None) -> Sequence[Request]:
        """All requests, or those of one status, in the order submitted."""
        query = sa.select(tables.requests).order_by(tables.requests.c.number)
        with self._book.reading() as connection:
            return [request_of(row) for row in connection.execute(query) if status in (None, row.status)]

    def get(self, number: int) -> Request:
        """The request of that number.

        Raises:
            LedgerError: there is none.
        """
        with self._book.reading() as connection:
            return request_of(self._book.row(connection, number))

    def batch(self, number: int) -> Batch:
        """The batch of that number, finished or not.

        Raises:
            LedgerError: there is none.
        """
        with self._book.reading() as connection:
            return self._book.batch(connection, number)

    def ids(self, request: int) -> Sequence[str]:
        """The ids of a request in the clear, sorted; empty once they are erased."""
        with self._book.reading() as connection:
            return self._book.clear_ids(connection, [request])

    def hashes(self, request: int) -> Sequence[str]:
        """The salted hashes of a request's ids, sorted."""
        query = sa.select(tables.request_ids.c.hash).where(tables.request_ids.c.request == request)
        with self._book.reading() as connection:
            return sorted(connection.execute(query).scalars())

    def resolve(
        self, ids: Iterable[str | int], known: Sequence[str] | Sequence[int], dataset: str = DATASET
    ) -> Resolved:
        """What of `ids` the data has, `known` being all the ids it has, and what was removed from it before.

        Raises:
            DataError: ids that are neither; it names them.
        """
        asked, has = checked_ids(ids), {str(one): one for one in known}
        missing = {self.record_hash(one, dataset): one for one in asked if one not in has}
        with self._book.reading() as connection:
            gone = {missing[key] for _, status, key in self._book.named(connection, missing) if status == PUBLISHED}
        unknown = [one for one in missing.values() if one not in gone]
        if unknown:
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            raise DataError(
                [f"ids: {len(unknown)} that the data {dataset!r} does not have: {', '.join(unknown[:20])}{more}"]
            )
        return Resolved([has[one] for one in asked if one in has], sorted(gone))

    def removed(self, dataset: str = DATASET) -> frozenset[str]:
        """The salted hashes of all records that published requests named: no later model may know them again."""
        asked, named = tables.requests, tables.request_ids
        published = sa.and_(asked.c.dataset == dataset, asked.c.status == PUBLISHED)
        query = sa.select(named.c.hash).join(asked, asked.c.number == named.c.request).where(published)
        with self._book.reading() as connection:
            return frozenset(connection.execute(query).scalars())

    # What becomes of it

    def drain(self, dataset: str = DATASET, limit: int | None = None) -> Batch | None:
        """Claim what waits as one batch; after a crash, the batch that was not finished. None if there is neither.

        From then on this ledger, while it is referred to, is the one that works on this data, until the batch is finished.

        Args:
            dataset: only requests about this data.
            limit: at most so many requests, the oldest; None = all.

        Raises:
            LedgerError: another process is working on a batch of this data; it is told apart from one that crashed by a lock
                that goes with the process.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit: expected at least 1, got {limit}")
        self._book.hold(dataset)
        table = tables.batches
        with self._book.transaction() as connection:
            unfinished = sa.and_(table.c.dataset == dataset, table.c.status.not_in(FINISHED))
            number = connection.execute(sa.select(table.c.number).where(unfinished)).scalar()
            if number is None:
                number = self._claim(connection, dataset, limit)
            batch = None if number is None else self._book.batch(connection, number)
        if batch is None:
            self._book.release(dataset)
        return batch

    def advance(self, batch: Batch | int, status: str, details: Mapping[str, Any] | None = None) -> Batch:
        """Bring a batch to its next status; to the one it has, nothing happens: a step repeated after a crash.

        Only `weighed` with other details than before is noted anew, whatever came since: the batch is begun again.

        Once it is published, rejected or found to need no action, the clear ids of its requests are erased; after another end
        its requests wait again.

        Raises:
            LedgerError: the status cannot follow, there is no such batch, or `details` name an id, which events never hold.
        """
        number = batch if isinstance(batch, int) else batch.number
        with self._book.transaction() as connection:
            now = self._book.batch(connection, number)
            noted = dict(now.details.get(status, {}))
            if now.status != status or (status == WEIGHED and details is not None and dict(details) != noted):
                allowed = TRANSITIONS.get(now.status, frozenset())
                if status not in allowed:
                    follow = f"{', '.join(sorted(allowed))} can follow" if allowed else "nothing can follow"
                    raise LedgerError(f"batch {number} is {now.status}: {follow}, got {status!r}")
                members = [request.number for request in now.requests]
                self._book.refuse_ids(connection, members, details or {})
                self._book.append(connection, status, None, number, details or {})
                connection.execute(
                    sa.update(tables.batches).where(tables.batches.c.number == number).values(status=status)
                )
                if status in CLOSED:
                    self._book.close(connection, members, status)
                else:
                    outcome = status if status in FINISHED else None
                    change = sa.update(tables.requests).where(tables.requests.c.number.in_(members))
                    connection.execute(change.values(status=request_status(status), outcome=outcome))
            done = self._book.batch(connection, number)
        if done.finished:
            self._book.scrub()
            self._book.release(done.dataset)
        return done

    def release(self, dataset: str = DATASET) -> None:
        """Let other processes `drain` this data: its batch stays as it is, and the next one goes on with it."""
        self._book.release(dataset)

    def note(self, batch: Batch | int, kind: str, details: Mapping[str, Any]) -> Event:
        """Append an event about a batch that changes no status, such as that its evidence was written.

        Raises:
            LedgerError: there is no such batch, or `details` name an id.
            ValueError: `kind` is a status.
        """
        if kind in TRANSITIONS.keys() | FINISHED | {SUBMITTED, "created", "refused"}:
            raise ValueError(f"kind: {kind!r} is a status; a batch comes to it by advance")
        number = batch if isinstance(batch, int) else batch.number
        with self._book.transaction() as connection:
            members = [request.number for request in self._book.batch(connection, number).requests]
            self._book.refuse_ids(connection, members, details)
            return self._book.append(connection, kind, None, number, details)

    # What happened

    def events(self, kind: str | None = None) -> Sequence[Event]:
        """All events, or those of one kind, in order."""
        with self._book.reading() as connection:
            return tuple(event for event in self._book.events(connection) if kind in (None, event.kind))

    def check(self) -> Sequence[str]:
        """What is wrong with the chain of events, and where the tables say another thing than it does; empty if nothing is."""
        return ledger_check.problems(self._book)

    # Secrets

    @property
    def salt(self) -> Salt:
        """What makes the hashes of ids."""
        return self._book.salt

    def record_hash(self, one: str | int, dataset: str = DATASET) -> str:
        """The salted hash by which a record is known for good."""
        return self.salt.record_hash(one, dataset)

    def _claim(self, connection: sa.Connection, dataset: str, limit: int | None) -> int | None:
        """The number of a new batch of what waits; None if nothing does."""
        table = tables.requests
        waiting = sa.and_(table.c.dataset == dataset, table.c.status == SUBMITTED)
        query = sa.select(table.c.number).where(waiting).order_by(table.c.number).limit(limit)
        members = [*connection.execute(query).scalars()]
        if not members:
            return None
        number = self._book.next_number(connection, tables.batches)
        connection.execute(sa.insert(tables.batches).values(number=number, dataset=dataset, status=CLAIMED))
        claim = sa.update(table).where(table.c.number.in_(members))
        connection.execute(claim.values(status=CLAIMED, batch=number, outcome=None))
        ids = self._book.clear_ids(connection, members)
        details = {"requests": members, "records": len(ids), "digest": self.salt.digest(ids, dataset)}
        self._book.append(connection, CLAIMED, None, number, details)
        return number

    def _overlaps(self, connection: sa.Connection, hashes: Iterable[str], but: int) -> tuple[Overlap, ...]:
        """The requests that name some of these records and were not rejected, but one."""
        shared = Counter((number, status) for number, status, _ in self._book.named(connection, hashes))
        return tuple(
            Overlap(number, status, records)
            for (number, status), records in sorted(shared.items())
            if number != but and status != REJECTED
        )
