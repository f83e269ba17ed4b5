"""What can become of a request, and in which order.

A request waits (`submitted`) until a batch claims it; from then on it has its batch's status. A batch ends in one of FINISHED.
Where that removed the records, or decided for good that they stay, the request is closed and its ids are erased; else nothing
was done for it, so it waits again.
"""

from __future__ import annotations

from collections.abc import Mapping

SUBMITTED = "submitted"
CLAIMED = "claimed"
WEIGHED = "weighed"
PUBLISHED = "published"
REJECTED = "rejected"
NO_ACTION = "no_action"

_AGAIN = frozenset({WEIGHED, REJECTED, NO_ACTION, "expired", "dry_run"})
"""After a crash the batch may be begun again with other options or data; what was noted after `claimed` is then void."""

TRANSITIONS: Mapping[str, frozenset[str]] = {
    CLAIMED: frozenset({WEIGHED, NO_ACTION, "dry_run"}),
    WEIGHED: _AGAIN | {"approved", "unlearned"},
    "approved": _AGAIN | {"unlearned"},
    "unlearned": _AGAIN | {"verified", "verify_failed", "retrained"},
    "retrained": _AGAIN | {"verified", "verify_failed"},  # the fallback: exact, whatever the comparison says of it
    "verified": _AGAIN | {PUBLISHED, "verify_failed"},
}
"""Status of a batch -> those that may follow."""

FINISHED = frozenset({"no_action", "dry_run", "rejected", "expired", "verify_failed", "published"})
"""How a batch, and with it a run, can end."""

CLOSED = frozenset({PUBLISHED, REJECTED, NO_ACTION})
"""Those of FINISHED that end the request too; after the others it waits again."""

STATUSES = frozenset({SUBMITTED, *TRANSITIONS, *FINISHED})
"""Every status a request or a batch can have."""


def request_status(batch_status: str) -> str:
    """Status of a request whose batch has this one."""
    return SUBMITTED if batch_status in FINISHED - CLOSED else batch_status
