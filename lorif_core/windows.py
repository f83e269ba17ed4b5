"""Rows of an index in windows that say nothing of its shards.

What is computed of a row may depend, in its last bits, on the rows it is computed with: a matrix product takes another path
for another shape (compiled kernels do not). An index that grew by appending has other shards than one made at once of the
same rows; in windows counted from the first row of the index, both give the same numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.codecs import decode
from lorif_core.manifest import LayerEntry, ShardEntry
from lorif_core.shards import Shard, open_shard, stream
from lorif_core.store import FactorStore, shard_rows

WINDOWS = 2
"""Of a shard of the usual size: workers draw on the next shards too, and each window costs a few tenths of a millisecond of
Python, a twentieth of one query's arithmetic."""
OPEN = 32
"""Files that are open at once: an index of many small appends has windows of hundreds of shards."""


@dataclass(frozen=True)
class Window:
    """Consecutive rows of an index: those from `start` to `stop`."""

    store: FactorStore
    start: int
    stop: int
    shards: tuple[Shard | ShardEntry, ...]
    """That hold them, in order; where they are many, they are opened as they are read."""

    def __len__(self) -> int:
        """The number of rows."""
        return self.stop - self.start

    def parts(self, start: int, stop: int) -> Iterator[tuple[Shard, int, int]]:
        """Each shard that holds rows start to stop of the index, and which of its own they are."""
        for one in self.shards:
            entry = one.entry if isinstance(one, Shard) else one
            begin, end = max(start - entry.start, 0), min(stop - entry.start, entry.rows)
            if begin < end:
                shard = one if isinstance(one, Shard) else open_shard(self.store.path, one, self.store.trust)
                yield shard, begin, end

    def blocks(self, layer: LayerEntry, rows: int, bits: int) -> Iterator[Block]:
        """A layer's rows in order, `rows` at a time and fewer only at the end, decoded."""
        for start in range(self.start, self.stop, rows):
            stop = min(start + rows, self.stop)

            def read(name: str, start: int = start, stop: int = stop) -> Tensor:
                found = [shard.read(f"{name}.{layer.name}", i, j) for shard, i, j in self.parts(start, stop)]
                return found[0] if len(found) == 1 else torch.cat(found)

            yield decode(layer, start, read, bits)


def window_rows(store: FactorStore) -> int:
    """Rows of a window, whatever the shards there are."""
    return -(-shard_rows(store.bytes_per_example) // WINDOWS)


def windows(store: FactorStore, rows: int) -> Generator[Window]:
    """The whole index in windows of `rows`, the last one shorter. Close it, or exhaust it: it holds a thread.

    Raises:
        StoreError: a shard is not as the manifest lists it; raised where its first window would have come.
    """
    held: list[Shard | ShardEntry] = []
    start = end = 0
    with closing(stream(store)) as shards:
        for shard in shards:
            held.append(shard if len(held) < OPEN else shard.entry)
            end += len(shard)
            while start + rows <= end or (start < end == len(store)):
                stop = min(start + rows, end)
                yield Window(store, start, stop, tuple(held))
                start = stop
                held = [shard] if start < end else []
