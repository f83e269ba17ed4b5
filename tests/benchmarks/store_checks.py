"""What it costs that shards are compared with their digests before they are first read.

Synthetic factors in the shapes of GPT-2 small (48 layers, f = 64, c = 1, 4.6 KB a row), page cache warm. `read`: the same files
read once; `trusted`, `first`, `later`: one query over them unchecked, on the first read of a process and after it; `sum`
and `sha256`: the digests alone. Seconds, the best of three, and as a share of the trusted query.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lorif_core import integrity, scoring
from lorif_core.atomic import file_digest
from lorif_core.mapping import MappedFile
from lorif_core.store import FactorStore
from tests.benchmarks.scale import first_query, query
from tests.benchmarks.synthetic import write
from tests.benchmarks.table import Row, show


def best(work: Callable[[], object]) -> float:
    """The shortest of three runs, in seconds."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def read(paths: list[Path]) -> None:
    """Read files once, into one buffer."""
    buffer = bytearray(2**20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args(argv).rows
    torch.set_num_threads(1)
    scoring.KERNEL_NUMBERS = 0  # small runs measure what large indexes get
    with tempfile.TemporaryDirectory() as name:
        store = write(Path(name, "index"), rows)
        trusted = FactorStore(store.path, store.manifest, trust=True)
        paths = [store.path / shard.file for shard in store.manifest.shards]
        query(trusted, 1)  # compiles the kernels
        seconds = {
            "read": best(lambda: read(paths)),
            "trusted": best(lambda: query(trusted, 1)),
            "first": best(lambda: first_query(store)),
            "later": best(lambda: query(store, 1)),
            "sum": best(lambda: [integrity.word_sum(MappedFile(path).content().numpy().data) for path in paths]),
            "sha256": best(lambda: [file_digest(path) for path in paths]),
        }
    found = [Row(what, {"seconds": x, "of trusted": x / seconds["trusted"]}) for what, x in seconds.items()]
    return show(f"one query over {rows:,} rows of {store.bytes_per_example:,} bytes", found)


if __name__ == "__main__":
    main()
