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

from lorif_core import integrity
from lorif_core.atomic import file_digest
from lorif_core.codecs import row_bytes
from lorif_core.manifest import SHARDS, LayerEntry, Manifest, Span
from lorif_core.scoring import stream_scores
from lorif_core.store import FactorStore, shard_rows, write_shard
from tests.benchmarks.table import Row, show

SIDES = ((12, 36), (12, 12), (12, 48), (48, 12))


def synthetic(folder: Path, rows: int) -> FactorStore:
    """An index of random factors."""
    layers = [
        LayerEntry(f"{block}.{n}", "Linear", 64 * d1, 64 * d2, d1, d2, 1)
        for block in range(12)
        for n, (d1, d2) in enumerate(SIDES)
    ]
    manifest = Manifest({"bits": 16}, "CausalLM", "", layers, {}, 1.0, "")
    (folder / SHARDS).mkdir()
    most, left = shard_rows(row_bytes(layers, 16)), rows
    while left:
        count = min(left, most)
        tensors = {"loss": torch.zeros(count)}
        for layer in layers:
            tensors[f"left.{layer.name}"] = torch.randn(count, layer.d1, 1).bfloat16()
            tensors[f"right.{layer.name}"] = torch.randn(count, layer.d2, 1).bfloat16()
        manifest, left = write_shard(folder, manifest, tensors, [Span(count, "")]), left - count
    manifest.with_(complete=True).write(folder)
    return FactorStore.open(folder)


def best(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """The shortest of three runs, in seconds."""
    seconds = []
    for _ in range(3):
        before()
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
    with tempfile.TemporaryDirectory() as name:
        store = synthetic(Path(name), rows)
        layers = store.manifest.layers
        queries = {layer.name: torch.randn(1, layer.d1, layer.d2) for layer in layers}
        paths = [store.path / shard.file for shard in store.manifest.shards]

        def query(trust: bool) -> None:
            for _ in stream_scores(
                FactorStore(store.path, store.manifest, trust), layers, queries, torch.device("cpu")
            ):
                pass

        seconds = {
            "read": best(lambda: read(paths)),
            "trusted": best(lambda: query(True)),
            "first": best(lambda: query(False), integrity.forget),
            "later": best(lambda: query(False)),
            "sum": best(lambda: [integrity.file_sum(path) for path in paths]),
            "sha256": best(lambda: [file_digest(path) for path in paths]),
        }
    found = [Row(what, {"seconds": x, "of trusted": x / seconds["trusted"]}) for what, x in seconds.items()]
    return show(f"one query over {rows:,} rows of {store.bytes_per_example:,} bytes", found)


if __name__ == "__main__":
    main()
