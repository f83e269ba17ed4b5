"""The requests of the ledger that a run answers, from their claim to their end. A step repeated after a crash changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.errors import DataError, LedgerError
from curation.unlearning.evidence import DIGEST
from curation.unlearning.ledger import Ledger
from curation.unlearning.requests import Batch
from curation.unlearning.statuses import NO_ACTION, PUBLISHED, REJECTED, WEIGHED
from flows import approval
from flows.errors import ConfigError
from flows.files import digest_file
from flows.requests import ledger_of
from flows.unlearn_schema import RequestSection


@dataclass
class Requests:
    """A batch of requests, if any waited.

    Attributes:
        ledger: it is in.
        place: the ledger's path or URL.
        dataset: name of the data.
        batch: as it stands; None: nothing waited.
        refused: numbers of the requests that named records the data never had.
    """

    ledger: Ledger
    place: str
    dataset: str
    batch: Batch | None
    refused: list[int]

    @classmethod
    def claim(cls, section: RequestSection, workspace: Path) -> Requests:
        """Claim what waits; after a crash, the batch that was not finished.

        Raises:
            ConfigError: there is no ledger, or another process works on these requests.
        """
        where: str | Path = section.ledger_url or ledger_of(workspace)
        if isinstance(where, Path) and not where.is_file():
            raise ConfigError(f"request.ledger: no ledger at {where}; curate requests submit begins one")
        try:
            ledger = Ledger(where)
            return cls(ledger, str(where), section.dataset, ledger.drain(section.dataset), [])
        except LedgerError as error:
            raise ConfigError(f"request.ledger: {error}") from None

    @property
    def number(self) -> int | None:
        """Of the batch."""
        return self.batch.number if self.batch else None

    @property
    def ids(self) -> list[str]:
        """Those asked for, in the clear."""
        return list(self.batch.ids) if self.batch else []

    @property
    def removed(self) -> list[str]:
        """Salted hashes of the records that earlier requests have removed, sorted."""
        return sorted(self.ledger.removed(self.dataset))

    def refuse(self, unknown: Sequence[str], tell: Callable[[str], None], *, for_good: bool = True) -> list[str]:
        """Refuse the requests that name a record that the data never had; gives the ids that are left.

        Args:
            unknown: ids that the data does not have; those that an earlier request removed are no reason to refuse.
            tell: told of each request refused.
            for_good: note it in the ledger, too; else they wait on.
        """
        batch = self.batch
        if batch is None:
            return []
        left, stay = set(unknown), set[str]()
        for request in batch.requests:
            missing = [one for one in self.ledger.ids(request.number) if one in left]
            try:
                if missing:
                    self.ledger.resolve(missing, [], self.dataset)
            except DataError as error:
                tell(f"request {request.number} {'is' if for_good else 'would be'} refused: {error}")
                self.refused.append(request.number)
                if for_good:
                    self.ledger.refuse(request.number, {"why": "names records that the data does not have"})
                continue
            stay |= set(self.ledger.ids(request.number))
        self.batch = self.ledger.batch(batch.number)
        return [one for one in self.ids if one in stay and one not in left]

    def advance(self, status: str, details: dict[str, Any]) -> None:
        """Note that the batch has come to a status, unless it had before; weighed by other means it is begun again."""
        if self.batch is None:
            return
        noted = self.batch.details.get(status)
        if noted is None or (status == WEIGHED and dict(noted) != details):
            self.batch = self.ledger.advance(self.batch, status, details)

    def release(self) -> None:
        """Let the next run go on with what is not finished; once this one has ended, however it did."""
        self.ledger.release(self.dataset)

    def close(self, summary: Mapping[str, Any]) -> None:
        """Bring the batch to the end that a run's summary tells of; one that waits for an answer stays for the next run."""
        status, answer = summary["status"], summary["approval"] or {}
        details = {"verdict": summary["verdict"]} if summary["verdict"] is not None else {}
        if status == PUBLISHED:  # the evidence says what, and where to
            details[DIGEST] = digest_file(Path(summary["evidence"]))
        if status == approval.AWAITING:
            return
        if status == REJECTED and answer.get("decision") == REJECTED:
            details = {name: answer[name] for name in ("digest", "by", "decided", "reason")}
        elif status == REJECTED:  # one by one, so that nothing is left of the batch
            status = NO_ACTION
        self.advance(status, details)
