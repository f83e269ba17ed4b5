"""The journal of a purge: what it takes to finish a run whose records are being removed, and no id in the clear."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from curation.errors import LedgerError
from curation.unlearning.statuses import PUBLISHED
from flows.files import read_json, write_json

if TYPE_CHECKING:
    from curation.unlearning.ledger import Ledger

FOLDER = "purge"
"""In the workspace: the journals of purges that are not finished."""


@dataclass(frozen=True)
class Journal:
    """How to finish a run once its records are being removed.

    Attributes:
        batch: of the ledger.
        claim: salted digest of its ids, by which it is told from a batch of that number of another ledger.
        folder: of the results.
        digest: what the run is of.
        stages: names of the folders of its stages.
        trace: the folder of the one that says what to look for.
        data: digest of the data with the records.
        index: path of an index of the user's.
        models: sha256 of the checkpoints that know the records.
        keep: the checkpoints among them that stay all the same.
        summary: so far.
        results: files in ``folder`` besides the summary.
        evidence: so far.
        done: what the purge came to; empty while it is not finished.
        removed: what has been removed so far (`flows.sweeping.Tally`).
    """

    batch: int
    claim: str
    folder: str
    digest: str
    stages: list[str]
    trace: str
    data: str
    index: str | None
    models: list[str]
    keep: list[str]
    summary: dict[str, Any]
    results: list[str]
    evidence: dict[str, Any]
    done: dict[str, Any]
    removed: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, home: Path, claim: str) -> Self | None:
        """The journal of a batch in the workspace at ``home``; None where there is none."""
        found = read_json(_file(home, claim))
        names = {one.name for one in fields(cls)}  # an older version of this software wrote others, too
        return None if found is None else cls(**{name: value for name, value in found.items() if name in names})

    def write(self, home: Path) -> Self:
        """Put it into the workspace at ``home``; returns self."""
        write_json(_file(home, self.claim), asdict(self))
        return self

    def remove(self, home: Path) -> None:
        """The batch is closed; a write that was killed half-way has left nothing either."""
        file = _file(home, self.claim)
        for path in (*file.parent.glob(f".{file.name}.*"), file):
            path.unlink(missing_ok=True)


def forget_closed(home: Path, ledger: Ledger) -> None:
    """Remove the journals of batches that this ledger has closed: a run was killed just before it would have."""
    for file in (home / FOLDER).glob("*.json"):
        journal = Journal.of(home, file.stem)
        if journal is None:
            continue
        try:
            batch = ledger.batch(journal.batch)
        except LedgerError:  # of another ledger
            continue
        if batch.digest == journal.claim and batch.status == PUBLISHED:
            journal.remove(home)


def _file(home: Path, claim: str) -> Path:
    return home / FOLDER / f"{claim}.json"
