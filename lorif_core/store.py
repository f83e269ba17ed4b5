"""The factor store on disk: immutable shards and a manifest, no pickle anywhere.

Axes: N training examples, n rows of a shard, d1 / d2 projected sides of a layer, c its factor rank.

    manifest.json                what was indexed, how, digests of everything
    shards/00000.safetensors     left.<layer> [n, d1, c], right.<layer> [n, d2, c] (gradient.<layer> [n, d1, d2] where the
                                 layer's rank is 0; codes.<layer> and scale.<layer> below 16 bits), loss [n]
    projection.safetensors       pca only
    ids.safetensors              where the user names the rows
    curvature.safetensors        per layer, the tensors of its inverse (lorif_core.inverse)

A shard is written aside, fsynced and renamed, then listed in the manifest; a finished one is never rewritten. Killed at any
moment, the next `fit` finds the listed shards, drops the rest, and goes on to a bit-identical store. How a finished index
changes, and what its files are called then: lorif_core.revisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from lorif_core.atomic import write_bytes, write_tensors
from lorif_core.blocks import Block
from lorif_core.codecs import decode, row_bytes
from lorif_core.digests import ExampleDigest
from lorif_core.errors import StoreError
from lorif_core.integrity import missing, open_whole, read_checked, word_sum
from lorif_core.manifest import Manifest, ShardEntry, Span, read_manifest
from lorif_core.objectives import Batch, batch_rows
from lorif_core.remote import checkout

SHARD_BYTES = 64 * 2**20
Ids = list[str] | list[int]


class FactorStore:
    """Read access to a finished index; tensors are memory-mapped, nothing is held.

    A shard is compared with its `word_sum` the first time a process reads it, ids, projections and curvature with their
    sha256 every time: a damaged file raises StoreError and never becomes a wrong score. The first check of a shard takes
    about as long as reading it once from the page cache (tests/benchmarks/store_checks.py); `trust` leaves it out. Memory
    that goes bad after the check is not noticed; a file that changes is checked again.

    The index may be changed meanwhile (append, purge, compact): a store reads the files its manifest lists, or raises
    StoreError once they are gone; open it again for the new state.
    """

    def __init__(self, path: Path, manifest: Manifest, trust: bool = False) -> None:
        """Use `FactorStore.open`."""
        self.path, self.manifest, self.trust = path, manifest, trust

    @classmethod
    def open(cls, path: str | Path, trust: bool = False) -> FactorStore:
        """The index at `path`.

        Args:
            path: its folder, or an fsspec URL (lorif_core.remote).
            trust: read shards without checking them.

        Raises:
            StoreError: there is none, it is damaged, unfinished, or a listed shard is missing or has another size.
        """
        folder = checkout(path)
        manifest = read_manifest(folder)
        while (problem := _first_problem(folder, manifest)) is not None:
            now = read_manifest(folder)
            if now == manifest:
                raise StoreError(problem)
            manifest = now  # a writer changed the index between the two looks
        return cls(folder, manifest, trust)

    def __len__(self) -> int:
        """N."""
        return self.manifest.examples

    @property
    def bytes_per_example(self) -> int:
        """Bytes of one example's gradients and loss."""
        return row_bytes(self.manifest.layers, self.manifest.bits)

    def blocks(self, layer: str, rows: int) -> Iterator[Block]:
        """The layer's rows in index order, at most `rows` at a time, decoded."""
        entry = next(x for x in self.manifest.layers if x.name == layer)
        for shard in self.manifest.shards:
            with self.opened(shard) as file:
                for start in range(0, shard.rows, rows):
                    part = slice(start, min(start + rows, shard.rows))

                    def read(name: str, part: slice = part, file: Any = file) -> Tensor:
                        tensor: Tensor = file.get_slice(f"{name}.{layer}")[part]
                        return tensor

                    yield decode(entry, shard.start + start, read, self.manifest.bits)

    def losses(self) -> Tensor:
        """Training loss of every example when it was indexed [N], float32."""
        parts = []
        for shard in self.manifest.shards:
            with self.opened(shard) as file:
                parts.append(file.get_tensor("loss"))
        return torch.cat(parts)

    def ids(self) -> Ids:
        """The rows' ids; their positions where the user gave none."""
        file = self.manifest.file("ids")
        if file is None:
            return list(range(len(self)))
        return decode_ids(load(read_checked(self.path / file, self.manifest.files[file])))

    def opened(self, shard: ShardEntry) -> Any:
        """A shard's safetensors file, to be used in a `with` block; checked first, unless it is trusted.

        Raises:
            StoreError: it is missing or damaged.
        """
        path = self.path / shard.file
        open_whole(path, shard.sha256, shard.words, self.trust)
        try:
            return safe_open(path, framework="pt")
        except (FileNotFoundError, RuntimeError):  # it opens the file twice, and a writer may remove it in between
            if path.exists():
                raise
            raise StoreError(missing(path)) from None


def write_shard(
    folder: Path, manifest: Manifest, tensors: dict[str, Tensor], spans: list[Span], energy: dict[str, float]
) -> Manifest:
    """Write the next shard of an index; returns the manifest that lists it, not yet written."""
    file, data = manifest.shard_file(), save({name: tensor.contiguous() for name, tensor in tensors.items()})
    sha = write_bytes(folder / file, data)
    rows = sum(span.rows for span in spans)
    return manifest.with_shard(ShardEntry(file, 0, rows, len(data), sha, spans, word_sum(data), energy))


def write_ids(folder: Path, manifest: Manifest, ids: Ids) -> Manifest:
    """Write the ids of all rows; returns the manifest that lists them, not yet written.

    Raises:
        StoreError: the ids are of mixed or other types, or not unique.
    """
    sha, _ = write_tensors(folder / manifest.named("ids"), encode_ids(ids))
    return manifest.with_file("ids", sha)


def check_rows(folder: Path, manifest: Manifest, batch: Batch, start: int, digest: ExampleDigest) -> int:
    """Compare the part of a batch that finished shards hold with what they were made from.

    Args:
        folder: of the index.
        manifest: its manifest.
        batch: rows start, start + 1, ... of the training data.
        start: index of the batch's first row.
        digest: carried from batch to batch.

    Returns:
        How many of the batch's rows are finished.

    Raises:
        StoreError: the rows are not those the shard was made from.
    """
    done = max(0, min(batch_rows(batch), manifest.examples - start))
    position = 0
    for shard in manifest.shards:
        end = shard.start
        for span in shard.spans:
            end += span.rows
            stop = min(done, end - start)
            if stop <= position:
                continue
            digest.update(batch, position, stop)
            position = stop
            if start + stop == end and digest.take() != span.data and span.comparable:
                raise StoreError(
                    f"the loader's rows {end - span.rows} to {end - 1} are not those {shard.file} in {folder} was made "
                    "from: the data or its order changed; index it into another folder, or remove this one"
                )
    return done


def not_comparable(manifest: Manifest) -> int:
    """How many rows cannot be compared with a loader's, since others were purged from among them."""
    return sum(span.rows for shard in manifest.shards for span in shard.spans if not span.comparable)


def shard_rows(bytes_per_example: int) -> int:
    """Rows of a shard: about `SHARD_BYTES`, so that memory does not grow with the model or the data."""
    return max(1, min(65_536, SHARD_BYTES // max(bytes_per_example, 1)))


def listed_ids(ids: Iterable[str] | Iterable[int]) -> list[str | int]:
    """The same as a list, if they are strings and integers.

    Raises:
        StoreError: there are others, or one string is given instead of several.
    """
    if isinstance(ids, str | bytes):
        raise StoreError(f"ids: expected a list of ids, got the one string {ids!r}: put it into a list")
    found: list[str | int] = list(ids)
    if odd := [x for x in found if isinstance(x, bool) or not isinstance(x, str | Integral)]:
        raise StoreError(f"ids must be all strings or all integers, got {odd[:5]} (a mask of rows is no list of ids)")
    return found


def check_ids(ids: Sequence[str] | Sequence[int]) -> None:
    """Nothing, for ids that can name the rows of an index.

    Raises:
        StoreError: ids are of mixed or other types, or not unique.
    """
    listed_ids(ids)
    if not all(isinstance(x, str) for x in ids) and not all(isinstance(x, int) for x in ids):
        raise StoreError(f"ids must be all strings or all integers, got {sorted({type(x).__name__ for x in ids})}")
    if len(set(ids)) != len(ids):
        twice = [x for x, count in Counter(ids).items() if count > 1]
        raise StoreError(f"ids must be unique: {len(twice)} are given more than once, the first are {twice[:5]}")


def encode_ids(ids: Sequence[str] | Sequence[int]) -> dict[str, Tensor]:
    """Ids as tensors: integers as they are, strings as UTF-8 bytes and offsets.

    Raises:
        StoreError: ids are of mixed or other types, too large, or not unique.
    """
    check_ids(ids)
    if all(isinstance(x, int) for x in ids):
        try:
            return {"integers": torch.tensor(ids, dtype=torch.int64)}
        except (RuntimeError, ValueError, OverflowError):
            raise StoreError("integer ids must fit into 64 bits: give larger ones as strings") from None
    texts = [str(x).encode() for x in ids]
    ends = torch.tensor([len(text) for text in texts], dtype=torch.int64).cumsum(0)
    return {
        "text": torch.frombuffer(bytearray(b"".join(texts)) or bytearray(1), dtype=torch.uint8).clone(),
        "ends": ends,
    }


def decode_ids(tensors: dict[str, Tensor]) -> Ids:
    """The inverse of `encode_ids`."""
    if "integers" in tensors:
        return [int(x) for x in tensors["integers"].tolist()]
    text, ends = tensors["text"].numpy().tobytes(), tensors["ends"].tolist()
    return [text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _first_problem(folder: Path, manifest: Manifest) -> str | None:
    """Why the index cannot be read, as far as sizes tell."""
    if not manifest.complete:
        return f"the index at {folder} is unfinished ({manifest.examples} rows): run fit again, it continues"
    for shard in manifest.shards:
        file = folder / shard.file
        size = file.stat().st_size if file.exists() else None
        if size != shard.bytes:
            return f"{file}: expected {shard.bytes} bytes, got {'no file' if size is None else size}; rebuild the index"
    return None
