"""Selecting from a synthetic index of GPT-2-small shape: time over one reading of it, and memory.

Groups of target rows are their mean gradients, so their number decides and not that of the rows: 100 groups are 100 times the
products of one, at the machine's matrix rate. The passes and `cat` of the
shards take turns on the same files, and the best of each counts; CPU seconds are given beside wall seconds, since other work
comes and goes. Scores come first, then what chooses by them.

    python -m tests.benchmarks.selection_scale --examples 1000000 --folder /fast/disk
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from curation.selection.aggregate import Scored, aggregate
from curation.selection.budget import Budget
from curation.selection.pool import Pool
from curation.selection.strategies import FacilityLocation, Importance, RoundRobin, TopK
from lorif_core import Classification, GradDot
from lorif_core.store import FactorStore
from tests.benchmarks.scale import THREADS, _against, _status, cat, rounds
from tests.benchmarks.synthetic import write
from tests.benchmarks.table import Row, show

TARGETS = 100
CHOSEN = 100
"""Pool rows for each row chosen."""
GROUPS = {"one group": 1, "4 groups": 4, "100 groups": 100}


class Synthetic(GradDot):
    """An attributor of an index that was written without a model: random gradients for target rows."""

    def __init__(self, store: FactorStore) -> None:
        """Of a finished index."""
        super().__init__(torch.nn.Linear(1, 1), Classification())
        self._store = store

    def gradients(self, loader: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        """Of batches of seeds."""
        for batch in loader:
            generator = torch.Generator().manual_seed(int(batch[0]))
            yield {x.name: torch.randn(len(batch), x.d1, x.d2, generator=generator) for x in self.store.manifest.layers}


def scored(store: FactorStore, groups: int, normalise: bool = False) -> Scored:
    """The target's scores, each target row in one of the groups in turn."""
    names = [str(row % groups) for row in range(TARGETS)]
    batches = list(torch.arange(TARGETS).split(10))
    k = max(1, len(store) // CHOSEN)
    return aggregate(Synthetic(store), batches, names, how="max", k=k, normalise=normalise)


def strategies(store: FactorStore) -> list[Row]:
    """Seconds that each strategy takes to choose a hundredth of the pool."""
    found = scored(store, 4)
    count = len(store)
    pool = Pool(
        ids=list(range(count)),
        scores=found.scores,
        lengths=np.ones(count, dtype=np.int64),
        allowed=np.ones(count, dtype=bool),
        best=found.best,
        vectors=np.random.default_rng(0).normal(size=(count, 32)).astype(np.float32),
    )
    budget = Budget(rows=max(1, count // CHOSEN))
    kinds = {
        "top_k": TopK(),
        "round_robin": RoundRobin(),
        "importance": Importance(),
        "facility_location": FacilityLocation(),
    }
    tasks: dict[str, Callable[[], object]] = {name: lambda x=x: x.select(pool, budget) for name, x in kinds.items()}
    return [Row(name, {"seconds": s.wall, "cpu s": s.cpu}) for name, s in rounds(tasks, 1).items()]


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the index is written, and removed; default: a temporary one")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    if args.peak:
        store = FactorStore.open(args.folder, trust=True)
        before = _status("VmRSS")
        scored(store, args.peak)
        print((_status("VmHWM") - before) / 1e3)
        return []
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        store = write(Path(place, "index"), args.examples)
        tasks: dict[str, Callable[[], object]] = {"cat": lambda: cat(store)}
        tasks |= {name: lambda n=n: scored(store, n) for name, n in GROUPS.items()}
        tasks["4 groups, unit gradients"] = lambda: scored(store, 4, normalise=True)
        scored(store, 1)  # compiles the kernels, checks the files
        found = rounds(tasks, args.repeats)
        what = f"{len(store):,} examples of {store.bytes_per_example} bytes, {TARGETS} target rows, {THREADS} threads"
        figures = {"seconds": found["cat"].wall, "cpu s": found["cat"].cpu}
        rows = show(
            f"scores: {what}",
            [Row("cat", figures), *[_against(name, s, found["cat"]) for name, s in found.items() if name != "cat"]],
        )
        command = [sys.executable, "-m", "tests.benchmarks.selection_scale", "--folder", str(store.path)]
        peaks = {
            name: float(subprocess.run([*command, "--peak", str(n)], check=True, capture_output=True, text=True).stdout)
            for name, n in GROUPS.items()
        }
        rows += show("peak memory above the process's own", [Row(name, {"MB": round(x)}) for name, x in peaks.items()])
        rows += show("choosing", strategies(store))
    return rows


if __name__ == "__main__":
    main()
