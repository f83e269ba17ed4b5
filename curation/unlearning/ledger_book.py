"""The database under the ledger: transactions, the chain of events, the salt, the lock of the one who works, and erasure."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout

from curation.errors import LedgerError
from curation.unlearning import ledger_tables as tables
from curation.unlearning.canonical import canonical
from curation.unlearning.chain import Event, event_hash
from curation.unlearning.requests import Batch, Request, named_in
from curation.unlearning.salt import Salt
from curation.unlearning.statuses import CLAIMED, WEIGHED

logger = logging.getLogger(__name__)

AT_ONCE = 500
"""Parameters of one statement."""


class Book:
    """Opens the database at `where`, with the salt that is kept beside it unless one is given."""

    def __init__(self, where: str | Path, salt: bytes | None) -> None:
        self.engine, self.file = tables.open_database(where)
        self.name = str(self.file or self.engine.url)  # a URL prints without its password
        self._workers: dict[str, Callable[[], object]] = {}  # what lets go of each data set
        with self.reading() as connection:
            used = connection.execute(sa.select(tables.head.c.number)).scalar_one() > 0
        if salt is not None:
            self.salt = Salt(salt)
        elif self.file is not None:
            self.salt = Salt.at(self.file.with_name(f"{self.file.name}.salt"), make=not used)
        else:
            with self.transaction() as connection:
                self.salt = Salt(tables.stored_salt(connection))
        if not used:
            self._begin()
        with self.reading() as connection:
            created = next(self.events(connection, limit=1), None)
        if created is None or created.details.get("salt") != self.salt.salted("salt"):
            raise LedgerError(
                f"the salt is not the one the ledger {self.name} was made with: no id would be recognised"
            )
        self.scrub()

    def _begin(self) -> None:
        """Write the first event, unless another process just did."""
        with self.transaction() as connection:
            if connection.execute(sa.select(tables.head.c.number)).scalar_one() == 0:
                self.append(connection, "created", None, None, {"salt": self.salt.salted("salt"), "version": 1})

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing, and nobody else's meanwhile: it begins by writing the one row of the head."""
        with self._told(), self.engine.begin() as connection:
            connection.execute(sa.update(tables.head).values(number=tables.head.c.number))
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that only reads."""
        with self._told(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise LedgerError(f"the database of the ledger {self.name}: {error.orig}") from error

    # Events

    def append(
        self,
        connection: sa.Connection,
        kind: str,
        request: int | None,
        batch: int | None,
        details: Mapping[str, Any],
    ) -> Event:
        """Append one event, within a transaction."""
        last = connection.execute(sa.select(tables.head)).one()
        text = canonical(dict(details)).decode()
        number, time = last.number + 1, datetime.now(UTC).isoformat(timespec="milliseconds")
        link = event_hash(number, time, kind, request, batch, json.loads(text), last.hash)
        event = Event(number, time, kind, request, batch, json.loads(text), last.hash, link)
        connection.execute(sa.insert(tables.events).values(**{**vars(event), "details": text}))
        connection.execute(sa.update(tables.head).values(number=number, hash=link))
        logger.info("ledger: event %d, %s (request %s, batch %s)", number, kind, request, batch)
        return event

    def events(self, connection: sa.Connection, limit: int | None = None, **where: object) -> Iterator[Event]:
        """The events in order, those whose columns have the values of `where`."""
        table = tables.events
        query = sa.select(table).order_by(table.c.number).limit(limit)
        for row in connection.execute(query.where(*(table.c[name] == value for name, value in where.items()))):
            yield Event(**{**row._mapping, "details": json.loads(row.details)})

    # Requests and batches

    def row(self, connection: sa.Connection, request: int) -> sa.Row[Any]:
        """The row of a request; LedgerError where there is none."""
        row = connection.execute(sa.select(tables.requests).where(tables.requests.c.number == request)).first()
        if row is None:
            raise LedgerError(f"the ledger {self.name} has no request {request}")
        return row

    def next_number(self, connection: sa.Connection, table: sa.Table) -> int:
        """One more than the largest number in a table, within a transaction."""
        return 1 + (connection.execute(sa.select(sa.func.max(table.c.number))).scalar() or 0)

    def batch(self, connection: sa.Connection, number: int) -> Batch:
        """A batch as it stands; LedgerError where there is none."""
        row = connection.execute(sa.select(tables.batches).where(tables.batches.c.number == number)).first()
        if row is None:
            raise LedgerError(f"the ledger {self.name} has no batch {number}")
        details: dict[str, Mapping[str, Any]] = {}
        for event in self.events(connection, batch=number):
            if event.kind == WEIGHED:  # begun, or begun again
                details = {CLAIMED: details[CLAIMED]}
            details[event.kind] = event.details
        table = tables.requests
        found = connection.execute(sa.select(table).where(table.c.batch == number).order_by(table.c.number)).all()
        refused = {event.request for event in self.events(connection, batch=number, kind="refused")}
        members = tuple(request_of(one) for one in found if one.number not in refused)
        ids = tuple(self.clear_ids(connection, [request.number for request in members]))
        return Batch(number, row.dataset, row.status, members, ids, details[CLAIMED]["digest"], details)

    def clear_ids(self, connection: sa.Connection, requests: Sequence[int]) -> list[str]:
        """The ids of some requests in the clear, sorted, each once."""
        table = tables.request_ids
        found: set[str] = set()
        for number in requests:
            query = sa.select(table.c.id).where(table.c.request == number, table.c.id.is_not(None))
            found.update(connection.execute(query).scalars())
        return sorted(found)

    def named(self, connection: sa.Connection, hashes: Iterable[str]) -> Iterator[tuple[int, str, str]]:
        """(request, its status, hash) wherever a request names one of the records of these salted hashes."""
        table, keys = tables.request_ids, sorted(hashes)
        query = sa.select(table.c.request, tables.requests.c.status, table.c.hash).join(tables.requests)
        for start in range(0, len(keys), AT_ONCE):
            for row in connection.execute(query.where(table.c.hash.in_(keys[start : start + AT_ONCE]))):
                yield row.request, row.status, row.hash

    # Erasure

    def refuse_ids(self, connection: sa.Connection, requests: Sequence[int], details: Mapping[str, Any]) -> None:
        """See to it that an event does not name a record: events cannot be erased."""
        if named_in(canonical(dict(details)).decode(), self.clear_ids(connection, requests)):
            raise LedgerError(
                "details name a record that is to be removed: events are kept for good; use its salted hash"
            )

    def close(self, connection: sa.Connection, requests: Sequence[int], status: str) -> None:
        """End some requests and erase their ids, within a transaction; `scrub` then takes the bytes off the disk."""
        table, ids = tables.requests, tables.request_ids
        for number in requests:
            connection.execute(sa.update(ids).where(ids.c.request == number).values(id=None))
            connection.execute(sa.update(table).where(table.c.number == number).values(status=status, outcome=status))

    def scrub(self) -> None:
        """Take the bytes of erased ids out of the database's files: after each end of a request, or when next opened.

        Raises:
            LedgerError: another process keeps reading; the step can be repeated.
        """
        table = tables.requests
        left = sa.and_(table.c.outcome == table.c.status, table.c.erased.is_(False))
        with self.reading() as connection:
            due = connection.execute(sa.select(table.c.number).where(left)).scalars().all()
        if not due:
            return
        if self.file is not None and not tables.scrub(self.engine, self.file):
            raise LedgerError(
                f"the ids of requests {', '.join(map(str, due))} are erased, but still in {self.file.name}-wal, since another "
                f"process has been reading {self.file} for {tables.BUSY_SECONDS} s: end that one and repeat the command"
            )
        with self.transaction() as connection:
            connection.execute(sa.update(table).where(table.c.number.in_(due)).values(erased=True))

    # Who works

    def hold(self, dataset: str) -> None:
        """Be the one process that works on this data's batches, until `release` or the process ends."""
        if dataset in self._workers:
            return
        key = hashlib.sha256(dataset.encode()).hexdigest()[:16]
        with self._told():
            release = tables.hold(self.engine, key) if self.file is None else _locked(f"{self.file}.{key}.lock")
        if release is None:
            raise LedgerError(
                f"another process is working on the requests of {dataset!r} in {self.name}; wait for it, or end it: a batch "
                "that it leaves unfinished is taken up by the next run"
            )
        self._workers[dataset] = release

    def release(self, dataset: str) -> None:
        """Let others work."""
        release = self._workers.pop(dataset, None)
        if release is not None:
            release()


def _locked(file: str) -> Callable[[], object] | None:
    """Take the lock of a file; what lets go of it, None where another process has it."""
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock.release


def request_of(row: sa.Row[Any]) -> Request:
    """A row of the table of requests."""
    return Request(**{name: value for name, value in row._mapping.items() if name != "erased"})
