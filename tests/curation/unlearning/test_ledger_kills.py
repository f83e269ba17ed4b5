"""kill -9 at random moments of a process that handles three requests: who goes on handles each of them once."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.unlearning.ledger import Ledger
from tests.curation.unlearning.test_ledger import WAY, bytes_of
from tests.killing import Server, server_of

REQUESTS = (["gone-1", "gone-2"], ["gone-2", "gone-3"], ["gone-4"])


def handle(folder: Path) -> None:
    """Submit three requests and bring them to their end."""
    ledger = Ledger(folder / "ledger.db")
    for number, ids in enumerate(REQUESTS):
        ledger.submit(ids, f"request {number}")
        if number == 1:  # two batches, unless both were claimed at once by a process that went on
            drain(ledger)
    drain(ledger)


def drain(ledger: Ledger) -> None:
    while batch := ledger.drain():
        steps = ("claimed", *WAY)
        for status in steps[steps.index(batch.status) + 1 :]:
            batch = ledger.advance(batch, status, {"step": status})


STEPS = {"handle": handle}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_of("tests.curation.unlearning.test_ledger_kills") as server:
        yield server


def check_kills(server: Server, folder: Path, kills: int, seed: int) -> None:
    """Kill so many times, beginning anew wherever the work was done, then let one finish and see that all is as it must be."""
    draw, killed, round_number = random.Random(seed), 0, 0
    whole = folder / "whole"
    begin = time.monotonic()
    server.attempt("handle", whole, None)
    lasts = time.monotonic() - begin
    check_handled(whole)
    while killed < kills:
        broken, round_number = folder / f"broken-{round_number}", round_number + 1
        for _ in range(draw.randrange(1, 4)):
            if killed < kills and server.attempt("handle", broken, draw.uniform(0, lasts)):
                killed += 1
        server.attempt("handle", broken, None)
        check_handled(broken)


def check_handled(folder: Path) -> None:
    """Each request was submitted, claimed and published once; nothing of its ids is left."""
    ledger = Ledger(folder / "ledger.db")
    assert ledger.check() == []
    assert [request.status for request in ledger.list()] == ["published"] * len(REQUESTS)
    events = ledger.events()
    claimed = [number for event in events if event.kind == "claimed" for number in event.details["requests"]]
    assert sorted(claimed) == [1, 2, 3]
    steps = Counter((event.batch, event.kind) for event in events if event.batch is not None)
    batches = {batch for batch, _ in steps}
    assert steps == Counter((batch, kind) for batch in batches for kind in ("claimed", *WAY))
    assert b"gone-" not in bytes_of(folder / "ledger.db")


def test_killed_a_few_times(server: Server, tmp_path: Path) -> None:
    check_kills(server, tmp_path, kills=3, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(server: Server, tmp_path: Path) -> None:
    check_kills(server, tmp_path, kills=20, seed=1)
