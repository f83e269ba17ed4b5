"""What can become of a request, and in which order.

A request waits (`submitted`) until a batch claims it; from then on it has its batch's status. A batch ends in one of FINISHED.
Where that removed the records, or decided for good that they stay, the request is closed and its ids are erased; else nothing
was done for it, so it waits again.
"""

from __future__ import annotations

from collections.abc import Mapping

SUBMITTED = "submitted"
CLAIMED = "claimed"
PUBLISHED = "published"
REJECTED = "rejected"
NO_ACTION = "no_action"

TRANSITIONS: Mapping[str, frozenset[str]] = {
    CLAIMED: frozenset({"weighed", "no_action", "dry_run"}),
    "weighed": frozenset({"approved", "rejected", "expired", "unlearned", "no_action", "dry_run"}),
    "approved": frozenset({"unlearned", "expired"}),
    "unlearned": frozenset({"verified", "verify_failed", "retrained"}),
    "retrained": frozenset({"verified", "verify_failed"}),  # the fallback: exact, and checked like the rest
    "verified": frozenset({"published", "verify_failed"}),  # failed by the checks that publishing makes
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
