"""Queries, curvature and memory on a synthetic index of GPT-2-small shape, as ratios to the disk and the matrix rate.

Everything is measured in one run on the same files: `cat` of the shards, products of 1024 x 1024 matrices and the
repetitions of each query take turns, and the best of each counts, since other work comes and goes. Where it never goes, wall
clocks say little: CPU seconds are given beside them, and the codecs compared by them. The disk is made cold by dropping the
files' pages. Flops of the curvature are those of the dense G^T G, 2 N D^2 a layer.

    python -m tests.benchmarks.scale --examples 1000000 --folder /fast/disk
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import Classification, LoRIF, integrity, kernels, scoring
from lorif_core.curvature import fit_curvature
from lorif_core.inverse import PrimalInverse
from lorif_core.manifest import ShardEntry
from lorif_core.mapping import MappedFile
from lorif_core.options import CurvatureOptions, Storage
from lorif_core.scoring import Queries, all_scores, top_k
from lorif_core.store import FactorStore
from lorif_core.threads import workers
from tests.benchmarks.synthetic import FACTOR, Network, write
from tests.benchmarks.table import Row, show

THREADS = 2
CPU = torch.device("cpu")
CODECS: list[tuple[Storage, int]] = [
    ("factors", 16),
    ("factors", 8),
    ("factors", 4),
    ("factors", 2),
    ("factors", 1),
    ("dense", 8),
    ("dense", 4),
    ("dense", 2),
    ("dense", 1),
]
SIDE = 1024
PRODUCT_FLOPS = 4 * 2 * SIDE**3
CURVATURE_EXAMPLES = 100_000
CURVATURE_SHARE = 5
"""Of the index, for the curvature's peak memory: a fit of all of it takes minutes."""
FIT_EXAMPLES = 40
"""For the peak memory of indexing, with a network of these layers."""


class Seconds(NamedTuple):
    """Least wall and least CPU seconds of a task, its child processes' included."""

    wall: float
    cpu: float


def rounds(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """The least of each task, the tasks in turn."""
    best = dict.fromkeys(tasks, Seconds(float("inf"), float("inf")))
    for _ in range(repeats):
        for name, task in tasks.items():
            wall, cpu = time.perf_counter(), _cpu_seconds()
            task()
            found = time.perf_counter() - wall, _cpu_seconds() - cpu
            best[name] = Seconds(min(best[name].wall, found[0]), min(best[name].cpu, found[1]))
    return best


def _cpu_seconds() -> float:
    """Of this process and its children, to the microsecond where `os.times` counts in hundredths of a second."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def cat(store: FactorStore) -> None:
    """Read every shard once."""
    files = [str(store.path / shard.file) for shard in store.manifest.shards]
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(["cat", *files], stdout=nowhere, check=True)


def read(store: FactorStore) -> None:
    """Add up the words of every shard where it is mapped: no query is faster."""

    def add(shard: ShardEntry) -> None:
        content = MappedFile(store.path / shard.file).content()
        content[: len(content) // 8 * 8].view(torch.int64).sum()

    with workers(CPU) as pool:
        for _ in pool.map(add, store.manifest.shards):
            pass


def drop(store: FactorStore) -> None:
    """Forget the shards' cached pages."""
    for shard in store.manifest.shards:
        descriptor = os.open(store.path / shard.file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def query(store: FactorStore, count: int, call: str = "top_k") -> None:
    """Score random preconditioned queries."""
    generator = torch.Generator().manual_seed(1)
    layers = store.manifest.layers
    gradients = {x.name: torch.randn(count, x.d1, x.d2, generator=generator) for x in layers}
    queries, inverses = Queries(gradients, preconditioned=True), {x.name: _nothing(x.size) for x in layers}
    if call == "top_k":
        top_k(store, queries, inverses, 20, True, CPU, lambda done: None)
    else:
        all_scores(store, queries, inverses, CPU, lambda done: None)


def first_query(store: FactorStore) -> None:
    """One query by a process that has not looked at the files yet."""
    integrity.forget()
    query(store, 1)


def _nothing(size: int) -> PrimalInverse:
    return PrimalInverse(torch.zeros(size, 0), torch.zeros(0), 1.0)


def multiply() -> None:
    """A product whose rate is the machine's matrix rate."""
    a = torch.ones(SIDE, SIDE)
    for _ in range(4):
        a @ a


def flops(store: FactorStore, queries: int = 1) -> float:
    """Of a dense contraction of every row with the queries."""
    return 2.0 * queries * len(store) * sum(layer.size for layer in store.manifest.layers)


def queries(store: FactorStore, repeats: int) -> list[Row]:
    """One and 64 queries against the disk and the matrix rate."""
    tasks = {
        "cat": lambda: cat(store),
        "read": lambda: read(store),
        "top_k": lambda: query(store, 1),
        "first": lambda: first_query(store),
        "score": lambda: query(store, 1, "score"),
        "multiply": multiply,
    }
    query(store, 1)  # compiles the kernels, warms the cache
    warm = rounds(tasks, repeats)
    drop(store)
    cold = rounds(
        {
            "cat": lambda: cat(store),
            "drop": lambda: drop(store),
            "top_k": lambda: query(store, 1),
            "drop again": lambda: drop(store),
        },
        max(2, repeats // 2),
    )
    many = rounds({"64": lambda: query(store, 64), "multiply": multiply}, max(2, repeats // 3))
    product = [min(warm["multiply"][i], many["multiply"][i]) for i in (0, 1)]
    rate, cpu_rate = (PRODUCT_FLOPS / seconds for seconds in product)
    work = flops(store, 64)
    size = sum(shard.bytes for shard in store.manifest.shards)
    return [
        Row(
            "cat, warm", {"seconds": warm["cat"].wall, "cpu s": warm["cat"].cpu, "GB/s": size / warm["cat"].wall / 1e9}
        ),
        _against("reading where it is mapped, warm", warm["read"], warm["cat"]),
        _against("one query, warm: top_k", warm["top_k"], warm["cat"]),
        _against("one query, warm: a process's first, which checks every byte", warm["first"], warm["cat"]),
        _against("one query, warm: all scores", warm["score"], warm["cat"]),
        Row(
            "cat, cold", {"seconds": cold["cat"].wall, "cpu s": cold["cat"].cpu, "GB/s": size / cold["cat"].wall / 1e9}
        ),
        _against("one query, cold: top_k", cold["top_k"], cold["cat"]),
        Row("matrix rate", {"GFLOP/s": rate / 1e9, "GFLOP/cpu s": cpu_rate / 1e9}),
        Row(
            "64 queries",
            {
                "seconds": many["64"].wall,
                "cpu s": many["64"].cpu,
                "GFLOP/s": work / many["64"].wall / 1e9,
                "share": work / many["64"].wall / rate,
                "cpu share": work / many["64"].cpu / cpu_rate,
            },
        ),
    ]


def _against(name: str, task: Seconds, read: Seconds) -> Row:
    """A task against `cat`; by CPU time as on free cores, where `cat` has one and the task all threads."""
    figures = {"seconds": task.wall, "cpu s": task.cpu}
    return Row(name, {**figures, "/ cat": task.wall / read.wall, "cpu / threads / cat": task.cpu / THREADS / read.cpu})


def codecs(folder: Path, examples: int, repeats: int) -> list[Row]:
    """One query, every codec: examples a second relative to 16-bit factors, and where reading is all of a query, at most."""
    stores = {
        f"{storage}, {bits} bits": write(folder / f"{storage}{bits}", examples, bits, storage)
        for storage, bits in CODECS
    }
    tasks: dict[str, Callable[[], object]] = {name: partial(query, store, 1) for name, store in stores.items()}
    tasks |= {f"read {name}": partial(read, store) for name, store in stores.items()}
    rounds(tasks, 1)
    best = rounds(tasks, repeats)
    first = best[next(iter(best))].cpu
    return [
        Row(
            name,
            {
                "bytes": stores[name].bytes_per_example,
                "examples/s": examples / s.wall,
                "examples/cpu s": examples / s.cpu,
                "/ 16-bit factors": first / s.cpu,
                "at most": first / best[f"read {name}"].cpu,
            },
        )
        for name, s in best.items()
        if name in stores
    ]


def part(store: FactorStore, examples: int) -> FactorStore:
    """The first shards of an index, about so many rows."""
    kept = [shard for shard in store.manifest.shards if shard.start < examples]
    return FactorStore(store.path, store.manifest.with_(shards=kept))


def curvature(store: FactorStore) -> Row:
    """Curvature of r = 256 on some of the index."""
    store = part(store, CURVATURE_EXAMPLES)
    product = rounds({"multiply": multiply}, 3)["multiply"]

    def fit() -> None:
        fit_curvature(store, CurvatureOptions(), CPU, lambda stage, done, total: None)

    fitted = rounds({"fit": fit}, 1)["fit"]
    again = rounds({"multiply": multiply}, 3)["multiply"]
    work = 2.0 * len(store) * sum(layer.size**2 for layer in store.manifest.layers)
    share, cpu_share = (
        work / seconds / (PRODUCT_FLOPS / min(one, other))
        for seconds, one, other in zip(fitted, product, again, strict=True)
    )
    figures: dict[str, float | int | str | None] = {"examples": len(store), "passes": 1, "seconds": fitted.wall}
    return Row("curvature, r = 256", figures | {"share": share, "cpu share": cpu_share})


def memory(store: FactorStore) -> list[Row]:
    """Peak memory above what a process with everything imported has, each call in a process of its own."""
    calls = {
        "top_k": len(store),
        "64 queries": len(store),
        "score": len(store),
        "curvature": len(store) // CURVATURE_SHARE,
        "fit": FIT_EXAMPLES,
    }
    rows = []
    for call, most in calls.items():
        figures: dict[str, float | int | str | None] = {}
        for size, examples in (("a tenth", most // 10), ("all", most)):
            command = [sys.executable, "-m", "tests.benchmarks.scale", "--peak", call]
            command += ["--folder", str(store.path), "--examples", str(examples)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            figures |= {f"{size}: examples": examples, f"{size}: MB": round(float(found.stdout))}
        rows.append(Row(call, figures))
    return rows


def peak(folder: Path, examples: int, call: str) -> float:
    """MB by which a call raises this process's peak memory; that of `fit` above its model's."""
    multiply()
    if call == "fit":
        return fit_peak(examples)
    store = part(FactorStore.open(folder), examples)
    before = _status("VmRSS")
    if call == "curvature":
        fit_curvature(store, CurvatureOptions(), CPU, lambda stage, done, total: None)
    else:
        query(store, 64 if call == "64 queries" else 1, "score" if call == "score" else "top_k")
    return (_status("VmHWM") - before) / 1e3


def fit_peak(examples: int) -> float:
    """MB above the model of indexing as many examples of two vectors with it."""
    model = Network()
    rows = DataLoader(TensorDataset(torch.randn(examples, 2, 768), torch.arange(examples) % 3), batch_size=16)
    before = _status("VmRSS")
    with tempfile.TemporaryDirectory() as place:
        LoRIF(model, Classification(), layers="blocks.*", projection_factor=FACTOR).fit(rows, place)
    return (_status("VmHWM") - before) / 1e3


def _status(name: str) -> int:
    """A figure of this process's memory, in kB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{name}:")[1].split()[0])


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the index is written, and removed; default: a temporary one")
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--storage", default="factors")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--codec-examples", type=int, default=100_000)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    scoring.KERNEL_NUMBERS = 0  # small runs measure what large indexes get
    if args.peak:
        print(peak(args.folder, args.examples, args.peak))
        return []
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        store = write(Path(place, "index"), args.examples, args.bits, args.storage)
        what = f"{len(store)} examples of {store.bytes_per_example} bytes, {THREADS} threads"
        rows = show(
            f"queries: {what}, kernels {'compiled' if kernels.available() else 'absent'}", queries(store, args.repeats)
        )
        rows += show("curvature (flops of the dense Gram matrix)", [curvature(store)])
        rows += show("peak memory above the process's own", memory(store))
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        examples = min(args.codec_examples, args.examples)
        rows += show(f"one query, every codec: {examples} examples", codecs(Path(place), examples, args.repeats))
    return rows


if __name__ == "__main__":
    main()
