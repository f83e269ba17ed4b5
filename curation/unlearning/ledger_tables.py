"""The ledger's tables, and how its database is opened.

SQLite is what this is made for and tested with: a file, in write-ahead mode, whose deleted content is overwritten
(`secure_delete`), with triggers that refuse to change events. The statements are such that Postgres takes them too, by URL and
with a driver of the user's, triggers and all; there erased ids stay in its dead rows and its own log until it vacuums and
recycles them. The tests need no server and so run none: what is for Postgres alone was tried by hand against one (15).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.schema import CreateIndex, CreateTable

from curation.errors import LedgerError
from curation.unlearning.salt import BYTES

BUSY_SECONDS = 30
"""How long a process waits for another's transaction."""

metadata = sa.MetaData()
head = sa.Table(
    "head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # one row, 1: taken first by every transaction
    sa.Column("number", sa.Integer, nullable=False),  # of the last event
    sa.Column("hash", sa.Text, nullable=False),
)
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("submitted", sa.Text, nullable=False),  # ISO 8601, UTC
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),  # salted, of the set of ids
    sa.Column("records", sa.Integer, nullable=False),  # how many ids
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("batch", sa.Integer, nullable=True),  # the last that claimed it
    sa.Column("outcome", sa.Text, nullable=True),  # how that one ended
    sa.Column("erased", sa.Boolean, nullable=False),  # the clear ids' bytes are out of the database's files
)
request_ids = sa.Table(
    "request_ids",
    metadata,
    sa.Column("request", sa.ForeignKey("requests.number"), primary_key=True),
    sa.Column("hash", sa.Text, primary_key=True),  # salted
    sa.Column("id", sa.Text, nullable=True),  # in the clear only while the request is open
)
by_hash = sa.Index("request_ids_by_hash", request_ids.c.hash)
batches = sa.Table(
    "batches",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
)
events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Text, nullable=False),  # ISO 8601, UTC
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("request", sa.Integer, nullable=True),
    sa.Column("batch", sa.Integer, nullable=True),
    sa.Column("details", sa.Text, nullable=False),  # canonical JSON
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
salts = sa.Table(  # where the database is no file beside which to put one
    "salts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
)

TRIGGERS = [
    f"CREATE TRIGGER IF NOT EXISTS events_refuse_{verb} BEFORE {verb.upper()} ON events "
    "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
    for verb in ("update", "delete")
]
REFUSAL = """CREATE OR REPLACE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$"""
POSTGRES_TRIGGERS = [
    REFUSAL,
    "DROP TRIGGER IF EXISTS events_refuse ON events",
    "CREATE TRIGGER events_refuse BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
    "FOR EACH STATEMENT EXECUTE FUNCTION events_refuse()",
]
ALONE = "SELECT pg_advisory_xact_lock(5303428)"
"""Of Postgres, whose `IF NOT EXISTS` two processes that start at once pass together, to meet in a deadlock."""


def open_database(where: str | Path) -> tuple[sa.Engine, Path | None]:
    """The engine of a database, its tables made where they are missing, and its file where it is one.

    Args:
        where: path of an SQLite file, or a URL of SQLAlchemy's.

    Raises:
        LedgerError: the URL is none, its driver is not installed, or the database cannot be opened.
    """
    try:
        url = (
            sa.make_url(where)
            if isinstance(where, str) and "://" in where
            else sa.URL.create("sqlite", database=str(where))
        )
        # A connection each time: none is kept over a fork, and the last to close removes the write-ahead log.
        engine = sa.create_engine(url, hide_parameters=True, poolclass=sa.pool.NullPool)
    except sa.exc.ArgumentError:
        raise LedgerError(
            "the ledger's URL is none of SQLAlchemy's; expected sqlite:///FILE or postgresql://..."
        ) from None
    except ImportError as error:
        raise LedgerError(f"the driver of the ledger's database is not installed: pip install {error.name}") from None
    if engine.dialect.name != "sqlite":
        try:
            if not _made(engine):
                postgres = engine.dialect.name == "postgresql"
                _make(engine, [ALONE] * postgres, POSTGRES_TRIGGERS * postgres)
        except sa.exc.DatabaseError as error:
            raise LedgerError(f"{engine.url} cannot be opened as the ledger's database: {error.orig}") from None
        return engine, None
    if url.database in (None, "", ":memory:"):
        raise LedgerError("the ledger must outlive this process; expected sqlite:///FILE, got a database in memory")
    file = Path(url.database).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    sa.event.listen(engine, "connect", _prepare)
    with FileLock(f"{file}.lock"):  # processes that start at once would meet in making it
        try:
            if not _made(engine):
                with engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                _make(engine, [], TRIGGERS)
        except sa.exc.DatabaseError as error:
            raise LedgerError(f"{file} cannot be opened as the ledger's database: {error.orig}") from None
    return engine, file


def stored_salt(connection: sa.Connection) -> bytes:
    """The salt in the database itself, made where there is none; within a transaction that holds the head."""
    salt = connection.execute(sa.select(salts.c.salt)).scalar()
    if salt is None:
        salt = secrets.token_bytes(BYTES)
        connection.execute(sa.insert(salts).values(id=1, salt=salt))
    return salt


def hold(engine: sa.Engine, key: str) -> Callable[[], object] | None:
    """Take a lock that goes with this process, or with its connection; what lets go of it, None where another has it.

    Args:
        engine: of a database that is no file; one that is no Postgres has no such lock, and it is for the caller to see to it.
        key: hexadecimal, 16 digits.
    """
    if engine.dialect.name != "postgresql":
        return lambda: None
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")  # or it would idle in a transaction
    number = int.from_bytes(bytes.fromhex(key), signed=True)
    if connection.execute(sa.select(sa.func.pg_try_advisory_lock(number))).scalar_one():
        return connection.close
    connection.close()
    return None


def scrub(engine: sa.Engine, file: Path) -> bool:
    """Bring the write-ahead log into the database and empty it; False if another process keeps reading."""
    with engine.connect() as connection:
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
    log = file.with_name(f"{file.name}-wal")
    return not busy and (not log.exists() or log.stat().st_size == 0)


def _prepare(connection: object, _: object) -> None:
    """What SQLite does not remember from one connection to the next."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in (f"busy_timeout={1000 * BUSY_SECONDS}", "secure_delete=ON", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _made(engine: sa.Engine) -> bool:
    """Whether everything is there: the row of the head is made last but for the triggers, in one transaction with them."""
    if not sa.inspect(engine).has_table(head.name):
        return False
    with engine.connect() as connection:
        return connection.execute(sa.select(head.c.number)).first() is not None


def _make(engine: sa.Engine, first: list[str], last: list[str]) -> None:
    with engine.begin() as connection:
        for statement in first:
            connection.exec_driver_sql(statement)
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
        connection.execute(CreateIndex(by_hash, if_not_exists=True))
        connection.exec_driver_sql(f"INSERT INTO head VALUES (1, 0, '{'0' * 64}') ON CONFLICT DO NOTHING")
        for statement in last:
            connection.exec_driver_sql(statement)
