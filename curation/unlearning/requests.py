"""Requests to remove records, and batches of them, as the ledger tells of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from curation.errors import DataError
from curation.unlearning.statuses import FINISHED

DATASET = "default"
"""Name of the data where a workspace has but one."""


@dataclass(frozen=True)
class Overlap:
    """Another request that names some of the same records.

    Attributes:
        request: its number.
        status: what became of it.
        records: how many ids both name.
    """

    request: int
    status: str
    records: int


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        number: 1, 2, ... in the order submitted.
        submitted: ISO 8601, UTC.
        dataset: name of the data the ids are of.
        reason: why, in the requester's words.
        digest: salted hash of the set of ids.
        records: how many ids.
        status: `submitted` while it waits, else that of its batch.
        batch: the last batch that claimed it.
        outcome: how that batch ended, once it has.
        repeated: of an answer to `submit`: this very set of ids had been submitted before.
        overlaps: of an answer to `submit`: other requests that name some of these ids.
    """

    number: int
    submitted: str
    dataset: str
    reason: str
    digest: str
    records: int
    status: str
    batch: int | None
    outcome: str | None
    repeated: bool = False
    overlaps: tuple[Overlap, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Requests that are handled together.

    Attributes:
        number: 1, 2, ...
        dataset: name of the data.
        status: how far it is.
        requests: those in it that were not refused.
        ids: the union of their ids in the clear, sorted; empty once erased.
        digest: salted hash of that set when it was claimed, which an approval is bound to.
        details: status the batch has come to, since it was last begun -> what was noted then.
    """

    number: int
    dataset: str
    status: str
    requests: tuple[Request, ...]
    ids: tuple[str, ...]
    digest: str
    details: Mapping[str, Mapping[str, Any]]

    @property
    def finished(self) -> bool:
        """Whether nothing more can happen to it."""
        return self.status in FINISHED


@dataclass(frozen=True)
class Resolved:
    """The ids of a request or batch against the data and against what was removed from it before.

    Attributes:
        present: those that the data has, as it has them (text or integers), in the order asked.
        unlearned: those that are not in the data any more since an earlier request removed them.
    """

    present: list[str | int]
    unlearned: list[str]


def checked_ids(ids: Iterable[str | int]) -> list[str]:
    """The ids as text, sorted, each once: a ledger tells integers from text no more than a file of ids does.

    Raises:
        DataError: there are none, or one is empty or of another type.
    """
    given = list(ids)
    wrong = [one for one in given if isinstance(one, bool) or not isinstance(one, str | int) or not str(one).strip()]
    if wrong:
        raise DataError([f"ids: expected text or integers that are not empty, got {wrong[:5]}"])
    if not given:
        raise DataError(["ids: expected at least one id, got none"])
    return sorted({str(one) for one in given})


def named_in(text: str, ids: Iterable[str]) -> str | None:
    """The first of the ids that `text` holds as a word of its own; integers are not looked for, since a number is no name."""
    for one in ids:
        if not one.removeprefix("-").isdecimal() and one in text and re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text):
            return one
    return None
