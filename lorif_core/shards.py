"""Shards in index order, memory-mapped, the next one read ahead by a thread while this one is used.

A mapped shard's tensors are views of its file: nothing is copied until it is computed with, and pages that are read
belong to the system's cache, not to this process.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.codecs import decode
from lorif_core.errors import StoreError
from lorif_core.manifest import LayerEntry, ShardEntry

if TYPE_CHECKING:
    from lorif_core.store import FactorStore

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8, "F64": torch.float64, "I64": torch.int64}
"""Of safetensors files: those a shard holds."""
WINDOW = 2**22
"""Bytes whose pages are touched between two looks at whether anyone still waits for them."""


@dataclass(frozen=True)
class Shard:
    """One finished shard: where its rows belong, and its tensors by name, first axis the rows."""

    entry: ShardEntry
    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        """The number of rows."""
        return self.entry.rows

    def blocks(
        self, layer: LayerEntry, rows: int, bits: int, start: int = 0, stop: int | None = None
    ) -> Iterator[Block]:
        """A layer's rows from `start` to `stop` in order, at most `rows` at a time, decoded."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, rows):
            part = slice(first, min(first + rows, stop))

            def read(name: str, part: slice = part) -> Tensor:
                return self.tensors[f"{name}.{layer.name}"][part]

            yield decode(layer, self.entry.start + first, read, bits)


def open_shard(folder: Path, entry: ShardEntry) -> Shard:
    """Map a shard; nothing but its header is read.

    Raises:
        StoreError: the file is gone, has another size than listed, or is no safetensors file.
    """
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise StoreError(f"{path}: expected {entry.bytes} bytes, got {size}; rebuild the index")
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writable to torch, never to the file
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; rebuild the index") from None
    if hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_SEQUENTIAL)
    try:
        return Shard(entry, _tensors(mapped))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}); rebuild the index") from None


def _tensors(mapped: mmap.mmap) -> dict[str, Tensor]:
    """Views of every tensor of a safetensors file: 8 bytes of header length, the header in JSON, the numbers."""
    begin = 8 + int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8:begin])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, (start, stop) = DTYPES[entry["dtype"]], entry["data_offsets"]
        count = (stop - start) // dtype.itemsize
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=begin + start) if count else torch.empty(0)
        found[name] = flat.to(dtype).view(entry["shape"])
    return found


def stream(store: FactorStore) -> Generator[Shard]:
    """Every shard in index order. Close it, or exhaust it: it holds a thread.

    Raises:
        StoreError: a shard is not as the manifest lists it; raised where that shard would have come.
    """
    stop = threading.Event()

    def prepare(entry: ShardEntry) -> Shard:
        shard = open_shard(store.path, entry)
        for tensor in shard.tensors.values():
            _touch(tensor, stop)
        return shard

    shards = store.manifest.shards
    with ThreadPoolExecutor(1, "lorif-read-ahead") as reader:
        try:
            waiting: list[Future[Shard]] = [reader.submit(prepare, entry) for entry in shards[:1]]
            for number in range(len(shards)):
                shard = waiting.pop().result()
                if number + 1 < len(shards):
                    waiting.append(reader.submit(prepare, shards[number + 1]))
                yield shard
                del shard  # unmapped as soon as its user lets go too
        finally:
            stop.set()


def _touch(tensor: Tensor, stop: threading.Event) -> None:
    """Have a tensor's pages read and mapped: numpy looks at one byte of each without holding the interpreter's lock."""
    if not tensor.numel():
        return
    flat = tensor.view(-1).view(torch.uint8).numpy()
    for start in range(0, len(flat), WINDOW):
        if stop.is_set():
            return
        flat[start : start + WINDOW : mmap.PAGESIZE].max()
