"""kill -9 at random moments of a whole run of unlearn over three requests: whoever goes on handles each of them once."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from curation.models.checkpoints import read_checkpoint
from curation.unlearning import evidence
from curation.unlearning.ledger import Ledger
from flows.cli import main
from tests.flows.test_unlearning import TINY
from tests.killing import Server

REQUESTS = (["person-00/award", "person-00/book"], ["person-00/book", "person-01/award"], ["person-02/book"])
WAY = ("claimed", "weighed", "unlearned", "retrained", "verified", "evidence", "published")
"""Of the batch: nothing passes the configuration's tolerance, so that every step there is is taken."""


def handle(folder: Path) -> None:
    """Submit three requests and run unlearn over them; what is said goes to a file."""
    folder.mkdir(exist_ok=True)
    with (folder / "said.txt").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    place = ["--workspace", str(folder)]
    for number, ids in enumerate(REQUESTS):
        file = folder / f"ids-{number}.txt"
        file.write_text("\n".join(ids))
        assert main(["requests", "submit", "--ids", str(file), "--reason", f"request {number}", *place]) == 0
    (folder / "job.yaml").write_text(TINY)
    nothing = ["--request.where.column", "null", "--request.where.values", "[]"]
    options = ["--request.ledger", "true", *nothing, "--fallback", "retrain"]
    assert main(["unlearn", "--config", str(folder / "job.yaml"), *options, *place]) == 0


STEPS = {"handle": handle}


def weights(folder: Path, pattern: str) -> dict[str, torch.Tensor]:
    """Of the only checkpoint there is by that name: a model unlearned twice would have another."""
    (path,) = folder.glob(pattern)
    found: dict[str, torch.Tensor] = read_checkpoint(path)["state_dict"]
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_handled(folder: Path, whole: Path) -> None:
    """Each request went its way once, and the models are, bit by bit, those of a run that nothing disturbed."""
    ledger = Ledger(folder / "ledger.db")
    assert ledger.check() == []
    assert [request.status for request in ledger.list()] == ["published"] * len(REQUESTS)
    assert not any(ledger.ids(request.number) for request in ledger.list())
    events = ledger.events()
    claimed = [number for event in events if event.kind == "claimed" for number in event.details["requests"]]
    assert sorted(claimed) == [1, 2, 3]
    assert Counter(event.kind for event in events if event.batch is not None) == Counter(WAY)
    summaries = [json.loads(file.read_text()) for file in (folder / "runs").glob("*/summary.json")]
    summary, *others = sorted(summaries, key=lambda one: one["status"] != "published")
    assert summary["status"] == "published" and summary["tier"] == "E0" and summary["n_records"] == 4
    assert {other["status"] for other in others} <= {"no_action"}  # of who came when all was done
    assert evidence.verify(Path(summary["evidence"]), ledger) == []
    for pattern in ("stages/unlearn-*/unlearned.ckpt", "runs/*/model.ckpt"):
        assert same(weights(folder, pattern), weights(whole, pattern))


@pytest.mark.slow
def test_killed_twenty_times(server: Server, tmp_path: Path) -> None:
    draw, killed, round_number = random.Random(0), 0, 0
    whole = tmp_path / "whole"
    server.attempt("handle", whole, None)
    check_handled(whole, whole)
    begin = time.monotonic()
    server.attempt("handle", tmp_path / "timed", None)  # the first one also waits for what starts once
    lasts = time.monotonic() - begin
    while killed < 20:
        broken, round_number = tmp_path / f"broken-{round_number}", round_number + 1
        for _ in range(draw.randrange(1, 7)):
            if killed == 20 or not server.attempt("handle", broken, draw.uniform(0, lasts)):
                break
            killed += 1
        server.attempt("handle", broken, None)
        check_handled(broken, whole)
