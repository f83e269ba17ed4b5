"""kill -9 at random moments of a process that handles three requests: who goes on handles each of them once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.unlearning.ledger import Ledger
from tests.curation.unlearning.test_ledger import WAY, bytes_of

SERVER = """
import os, signal, sys, time, traceback
from pathlib import Path
from tests.curation.unlearning import test_ledger_kills
print("ready", flush=True)
for line in sys.stdin:
    seconds, folder = line.rstrip().split(maxsplit=1)
    child = os.fork()
    if child == 0:
        try:
            test_ledger_kills.handle(Path(folder))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds != "None":
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)  # not waited for yet, so its number is still its own
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
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


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def attempt(server: subprocess.Popen[str], folder: Path, seconds: float | None) -> bool:
    """Handle the requests of a folder, or kill who does after some seconds; whether it was killed."""
    server.stdin.write(f"{seconds} {folder}\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    assert code in (0, -signal.SIGKILL)
    return code != 0


def check_kills(server: subprocess.Popen[str], folder: Path, kills: int, seed: int) -> None:
    """Kill so many times, beginning anew wherever the work was done, then let one finish and see that all is as it must be."""
    draw, killed, round_number = random.Random(seed), 0, 0
    whole = folder / "whole"
    begin = time.monotonic()
    attempt(server, whole, None)
    lasts = time.monotonic() - begin
    check_handled(whole)
    while killed < kills:
        broken, round_number = folder / f"broken-{round_number}", round_number + 1
        for _ in range(draw.randrange(1, 4)):
            if killed < kills and attempt(server, broken, draw.uniform(0, lasts)):
                killed += 1
        attempt(server, broken, None)
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


def test_killed_a_few_times(server: subprocess.Popen[str], tmp_path: Path) -> None:
    check_kills(server, tmp_path, kills=3, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(server: subprocess.Popen[str], tmp_path: Path) -> None:
    check_kills(server, tmp_path, kills=20, seed=1)
