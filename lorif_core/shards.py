"""Shards in index order, the next ones on their way from the disk while this one is used.

Rows are read into small buffers that stay in cache until they are decoded. Mapping the files instead costs, page by page,
what this copy does; and a file that shrinks is an error here, where it would kill a process that mapped it.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.codecs import decode
from lorif_core.errors import StoreError
from lorif_core.integrity import check_once, missing
from lorif_core.manifest import LayerEntry, ShardEntry

if TYPE_CHECKING:
    from lorif_core.store import FactorStore

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
"""Of safetensors files: those a shard holds."""
AHEAD = 2
"""Shards that are asked of the disk before they are needed."""


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies in a shard's file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    row_bytes: int


class Shard:
    """One finished shard, open: which rows it holds, and its tensors by name."""

    def __init__(self, path: Path, entry: ShardEntry, descriptor: int, tensors: dict[str, Stored]) -> None:
        """Use `open_shard`. The file is closed when nothing refers to the shard any more."""
        self.entry, self.tensors = entry, tensors
        self.path, self.descriptor = path, descriptor
        weakref.finalize(self, os.close, descriptor)

    def __len__(self) -> int:
        """The number of rows."""
        return self.entry.rows

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of one tensor, in memory of their own; threads may read at once.

        Raises:
            StoreError: the file ends before them.
        """
        stored = self.tensors[name]
        buffer = torch.empty((stop - start) * stored.row_bytes, dtype=torch.uint8)
        _read_into(self.path, self.descriptor, buffer.numpy().data, self.offset(name, start))
        return buffer.view(stored.dtype).view(stop - start, *stored.shape[1:])

    def offset(self, name: str, row: int) -> int:
        """Where in the file a row of one tensor begins."""
        stored = self.tensors[name]
        return stored.offset + row * stored.row_bytes

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
    """Open a shard, read its header and ask the disk for the rest, without waiting for it.

    Raises:
        StoreError: the file is gone, is not what the manifest lists (looked at once a process, unless it is trusted), or no
            shard.
    """
    path = folder / entry.file
    if not trust:
        check_once(path, entry.sha256, entry.words)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise StoreError(missing(path)) from None
    with ExitStack() as unless_opened:
        unless_opened.callback(os.close, descriptor)
        size = os.fstat(descriptor).st_size
        if size != entry.bytes:
            raise StoreError(f"{path}: expected {entry.bytes} bytes, got {size}; rebuild the index")
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        shard = Shard(path, entry, descriptor, _header(path, descriptor, size))
        unless_opened.pop_all()
    return shard


def stream(store: FactorStore) -> Generator[Shard]:
    """Every shard in index order. Close it, or exhaust it: it holds a thread.

    Raises:
        StoreError: a shard is not as the manifest lists it; raised where that shard would have come.
    """
    entries = iter(store.manifest.shards)
    waiting: deque[Future[Shard]] = deque()
    with ThreadPoolExecutor(1, "lorif-read-ahead") as reader:
        while True:
            for entry in entries:
                waiting.append(reader.submit(open_shard, store.path, entry, store.trust))
                if len(waiting) > AHEAD:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()


def _header(path: Path, descriptor: int, size: int) -> dict[str, Stored]:
    """The tensors of a safetensors file: 8 bytes of header length, the header in JSON, the numbers."""

    def read(count: int, offset: int) -> bytearray:
        data = bytearray(count)
        _read_into(path, descriptor, memoryview(data), offset)
        return data

    length = int.from_bytes(read(min(8, size), 0), "little")
    try:
        if length > size - 8:
            raise ValueError("its header is longer than the file")
        entries: dict[str, Any] = json.loads(read(length, 8))
        found = {}
        for name, entry in entries.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
                stored = Stored(dtype, shape, 8 + length + begin, dtype.itemsize * math.prod(shape[1:]))
                if stored.shape[0] * stored.row_bytes != end - begin or 8 + length + end > size:
                    raise ValueError(f"{name} does not fit its place")
                found[name] = stored
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{path} is damaged ({error}); rebuild the index") from None
    return found


def _read_into(path: Path, descriptor: int, buffer: memoryview, offset: int) -> None:
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise StoreError(
                f"{path} ends after {offset + done} bytes, {len(buffer) - done} too early; rebuild the index"
            )
        done += count
