"""Shards in index order, the next ones on their way from the disk while this one is used.

Compiled kernels use rows where they are mapped (`lorif_core.mapping`); all else gets copies, small enough to stay in cache
until they are decoded. (What torch computes depends, in its last bits, on where numbers begin in memory: not in a copy.)
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.codecs import decode
from lorif_core.errors import StoreError
from lorif_core.integrity import open_whole
from lorif_core.manifest import LayerEntry, ShardEntry
from lorif_core.mapping import MappedFile

if TYPE_CHECKING:
    from lorif_core.store import FactorStore

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
"""Of safetensors files: those a shard holds."""
AHEAD = 2
"""Shards that are brought into memory before they are needed."""


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies in a shard's file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    row_bytes: int


class Shard:
    """One finished shard, open: which rows it holds, and its tensors by name."""

    def __init__(self, file: MappedFile, entry: ShardEntry, tensors: Mapping[str, Stored]) -> None:
        """Use `open_shard`."""
        self.file, self.entry, self.tensors = file, entry, tensors

    def __len__(self) -> int:
        """The number of rows."""
        return self.entry.rows

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of one tensor, in memory of their own; threads may read at once.

        Raises:
            StoreError: the file ends before them.
        """
        stored = self.tensors[name]
        return self.file.read(*self.span(name, start, stop)).view(stored.dtype).view(stop - start, *stored.shape[1:])

    def span(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """Which bytes of the file rows start to stop of one tensor are."""
        stored = self.tensors[name]
        return stored.offset + start * stored.row_bytes, stored.offset + stop * stored.row_bytes

    def blocks(
        self, layer: LayerEntry, rows: int, bits: int, start: int = 0, stop: int | None = None
    ) -> Iterator[Block]:
        """A layer's rows from `start` to `stop` in order, at most `rows` at a time, decoded."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, rows):
            end = min(first + rows, stop)

            def read(name: str, first: int = first, end: int = end) -> Tensor:
                return self.read(f"{name}.{layer.name}", first, end)

            yield decode(layer, self.entry.start + first, read, bits)


def open_shard(folder: Path, entry: ShardEntry, trust: bool) -> Shard:
    """Open a shard and read its header.

    Raises:
        StoreError: the file is gone, is not what the manifest lists (looked at once a process, unless it is trusted), or no
            shard.
    """
    file = open_whole(folder / entry.file, entry.sha256, entry.words, trust)
    if file.size != entry.bytes:
        raise StoreError(f"{file.path}: expected {entry.bytes} bytes, got {file.size}; rebuild the index")
    return Shard(file, entry, _header(file))


def stream(store: FactorStore) -> Generator[Shard]:
    """Every shard in index order. Close it, or exhaust it: it holds threads.

    Raises:
        StoreError: a shard is not as the manifest lists it; raised where that shard would have come.
    """

    def ahead(entry: ShardEntry) -> Shard:
        shard = open_shard(store.path, entry, store.trust)
        shard.file.fetch()
        return shard

    entries = iter(store.manifest.shards)
    waiting: deque[Future[Shard]] = deque()
    with ThreadPoolExecutor(AHEAD, "lorif-read-ahead") as reader:
        while True:
            for entry in entries:
                waiting.append(reader.submit(ahead, entry))
                if len(waiting) > AHEAD:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()


def _header(file: MappedFile) -> Mapping[str, Stored]:
    """The tensors of a safetensors file: 8 bytes of header length, the header in JSON, the numbers."""

    def read(start: int, stop: int) -> bytes:
        return file.read(start, stop).numpy().tobytes()

    length = int.from_bytes(read(0, min(8, file.size)), "little")
    try:
        if length > file.size - 8:
            raise ValueError("its header is longer than the file")
        return _tensors(read(8, 8 + length), file.size)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{file.path} is damaged ({error}); rebuild the index") from None


@lru_cache(maxsize=AHEAD)
def _tensors(header: bytes, size: int) -> Mapping[str, Stored]:
    """Those of a header, of a file of `size` bytes: one dictionary for all shards that are alike, as all but the last are.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is no header of such a file.
    """
    entries: dict[str, Any] = json.loads(header)
    found = {}
    for name, entry in entries.items():
        if name != "__metadata__":
            begin, end = (8 + len(header) + offset for offset in entry["data_offsets"])
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            stored = Stored(dtype, shape, begin, dtype.itemsize * math.prod(shape[1:]))
            if stored.shape[0] * stored.row_bytes != end - begin or end > size or begin % dtype.itemsize:
                raise ValueError(f"{name} does not fit its place")
            found[name] = stored
    return found
