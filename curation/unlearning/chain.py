"""The ledger's events: each holds the hash of the one before, so that none can be changed or left out unnoticed.

What was cut off at the end shows against the ledger's head, its tables, and every evidence file written since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from curation.unlearning.canonical import digest
from curation.unlearning.statuses import CLAIMED, FINISHED, REJECTED, SUBMITTED, TRANSITIONS, request_status

GENESIS = "0" * 64
"""What stands for the hash before the first event."""


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        number: 1, 2, ... without a gap.
        time: ISO 8601, UTC.
        kind: "created", "submitted", "refused", "claimed", a status a batch came to, or another word ("evidence").
        request: the request it is about, if one.
        batch: the batch it is about, if one.
        details: plain values; never an id in the clear.
        previous: hash of the event before.
        hash: sha256 of the canonical JSON of all of the above.
    """

    number: int
    time: str
    kind: str
    request: int | None
    batch: int | None
    details: Mapping[str, Any]
    previous: str
    hash: str


def event_hash(
    number: int, time: str, kind: str, request: int | None, batch: int | None, details: Mapping[str, Any], previous: str
) -> str:
    """The hash an event of this content must have."""
    content = {
        "batch": batch,
        "details": details,
        "kind": kind,
        "number": number,
        "previous": previous,
        "request": request,
    }
    return digest(content | {"time": time})


@dataclass
class Replay:
    """What the tables must say after some events; `problems` where the events themselves cannot be right.

    Attributes:
        requests: request -> its status.
        submissions: request -> the details of its submission.
        batches: batch -> its status.
        members: batch -> its requests.
        number: of the last event.
        hash: of the last event.
        problems: one sentence a problem, each naming the event.
    """

    requests: dict[int, str] = field(default_factory=dict)
    submissions: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    batches: dict[int, str] = field(default_factory=dict)
    members: dict[int, list[int]] = field(default_factory=dict)
    number: int = 0
    hash: str = GENESIS
    problems: list[str] = field(default_factory=list)

    def follow(self, events: Iterable[Event]) -> Replay:
        """Go through the events, in the order of their numbers; returns self."""
        for event in events:
            self._link(event)
            self._apply(event)
        return self

    def _link(self, event: Event) -> None:
        if event.number != self.number + 1:
            self.problems.append(f"event {event.number}: expected number {self.number + 1}; events between are missing")
        elif event.previous != self.hash:
            self.problems.append(f"event {event.number}: does not follow from event {self.number} as that now stands")
        content = (event.number, event.time, event.kind, event.request, event.batch, event.details, event.previous)
        if event_hash(*content) != event.hash:
            self.problems.append(
                f"event {event.number} ({event.kind}, {event.time}): its content was changed after it was written"
            )
        self.number, self.hash = event.number, event.hash

    def _apply(self, event: Event) -> None:
        """Take one event in, or say why it cannot have happened."""
        wrong = f"event {event.number} ({event.kind})"
        if event.kind == SUBMITTED and event.request is not None:
            self.requests[event.request] = SUBMITTED
            self.submissions[event.request] = event.details
        elif event.kind == CLAIMED and event.batch is not None:
            members = list(event.details.get("requests", []))
            for request in members:
                if self.requests.get(request) != SUBMITTED:
                    self.problems.append(f"{wrong}: request {request} was not waiting")
                self.requests[request] = CLAIMED
            self.batches[event.batch], self.members[event.batch] = CLAIMED, members
        elif event.kind == "refused" and event.request is not None:
            if self.requests.get(event.request) not in (SUBMITTED, *TRANSITIONS):
                self.problems.append(f"{wrong}: request {event.request} was not open to refusal")
            self.requests[event.request] = REJECTED
            if event.batch is not None:
                self.members[event.batch] = [one for one in self.members.get(event.batch, []) if one != event.request]
        elif event.kind in TRANSITIONS.keys() | FINISHED and event.batch is not None:
            before = self.batches.get(event.batch)
            if before is None or event.kind not in TRANSITIONS.get(before, ()):
                self.problems.append(f"{wrong}: batch {event.batch} cannot come to it from {before}")
            self.batches[event.batch] = event.kind
            for request in self.members.get(event.batch, []):
                self.requests[request] = request_status(event.kind)
        elif event.batch is not None and event.batch not in self.batches:
            self.problems.append(f"{wrong}: there is no batch {event.batch}")
