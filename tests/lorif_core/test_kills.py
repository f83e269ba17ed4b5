"""kill -9 at random moments of fit, append, purge and compact: what goes on ends bit-identical to what was never stopped.

One child process imports everything once and forks for every attempt, so that a kill falls into the work and not into
`import torch`; an attempt is killed after a random share of the time that the work takes undisturbed.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorif_core import FactorStore, LoRIF, StoreError, verify
from tests.killing import Server, server_of
from tests.lorif_core.test_lasting import NAMES, attributor, part
from tests.lorif_core.test_store import files, loader, network


class Slow:
    """Batches that come as slowly as those of a larger model, so that kills fall between shards too."""

    def __init__(self, start: int, stop: int) -> None:
        self.rows = part(start, stop)

    def __iter__(self) -> Iterator[object]:
        for batch in self.rows:
            time.sleep(0.004)
            yield batch


def one() -> LoRIF:
    from lorif_core import store

    store.SHARD_BYTES = 3000
    return attributor(projection="pca", projection_factor=2, curvature_rank=20)


def opened(folder: Path) -> LoRIF:
    loaded = one()
    loaded._store = FactorStore.open(folder)
    return loaded


def fit(folder: Path) -> None:
    one().fit(Slow(0, 120), folder, ids=NAMES[:120])


def append(folder: Path) -> None:
    opened(folder).append(Slow(120, 203), ids=NAMES[120:203])


def purge(folder: Path) -> None:
    opened(folder).purge(NAMES[0:203:3])


def compact(folder: Path) -> None:
    opened(folder).compact()


STEPS: dict[str, Callable[[Path], None]] = {"fit": fit, "append": append, "purge": purge, "compact": compact}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_of("tests.lorif_core.test_kills") as server:
        yield server


def check_kills(server: Server, folder: Path, kills: dict[str, int], seed: int) -> None:
    """Do all steps in turn, each killed so many times before it may finish."""
    draw, whole, broken = random.Random(seed), folder / "whole", folder / "broken"
    for step in STEPS:
        begin = time.monotonic()
        assert not server.attempt(step, whole, None)
        lasts, killed = time.monotonic() - begin, 0
        before = folder / "before"
        shutil.rmtree(before, ignore_errors=True)
        if broken.exists():
            shutil.copytree(broken, before)
        while killed < kills[step]:
            if server.attempt(step, broken, draw.uniform(0, lasts)):
                killed += 1
                check_readable(broken, step)
            else:  # it was done before the kill came: once more from where it began
                assert files(broken) == files(whole)
                shutil.rmtree(broken)
                if before.exists():
                    shutil.copytree(before, broken)
        server.attempt(step, broken, None)
        assert files(broken) == files(whole), step
        assert verify(broken, network()) == []


def check_readable(folder: Path, step: str) -> None:
    """A killed fit leaves an unfinished index, or one whose curvature is still to come; any other change one that is whole."""
    if step != "fit":
        LoRIF.load(folder, network()).score(loader(2))
        return
    try:
        FactorStore.open(folder).losses()
    except StoreError as error:
        assert "unfinished" in str(error) or "no index" in str(error), error


def test_killed_a_few_times(server: Server, tmp_path: Path) -> None:
    check_kills(server, tmp_path, {"fit": 1, "append": 2, "purge": 2, "compact": 1}, seed=0)


@pytest.mark.slow
def test_killed_fifty_times(server: Server, tmp_path: Path) -> None:
    for seed in range(1, 6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        check_kills(server, folder, {"fit": 3, "append": 3, "purge": 3, "compact": 1}, seed)
