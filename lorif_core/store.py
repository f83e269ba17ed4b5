"""The factor store on disk: immutable shards and a manifest, no pickle anywhere.

Axes: N training examples, n rows of a shard, d1 / d2 projected sides of a layer, c its factor rank.

    manifest.json                what was indexed, how, digests of everything
    shards/00000.safetensors     left.<layer> [n, d1, c], right.<layer> [n, d2, c] (gradient.<layer> [n, d1, d2] where the
                                 layer's rank is 0; codes.<layer> and scale.<layer> below 16 bits), loss [n]
    projection.safetensors       pca only
    ids.safetensors              where the user names the rows
    curvature.safetensors        per layer, the tensors of its inverse (lorif_core.inverse)

A shard is written aside, fsynced and renamed, then listed in the manifest; a finished one is never rewritten. Killed at any
moment, the next `fit` finds the listed shards, drops the rest, and goes on to a bit-identical store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor, nn

from lorif_core.atomic import file_digest, write_tensors
from lorif_core.blocks import Block, Stored
from lorif_core.codecs import decode, encode, row_bytes
from lorif_core.digests import ExampleDigest, model_fingerprint
from lorif_core.errors import StoreError
from lorif_core.manifest import Manifest, ShardEntry, read_manifest
from lorif_core.objectives import Batch, batch_rows

SHARD_BYTES = 64 * 2**20
SHARDS = "shards"
Ids = list[str] | list[int]


class FactorStore:
    """Read access to a finished index; tensors are memory-mapped, nothing is held."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use `FactorStore.open`."""
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: str | Path) -> FactorStore:
        """The index at `path`.

        Raises:
            StoreError: there is none, it is damaged, unfinished, or a listed shard is missing or has another size.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not manifest.complete:
            raise StoreError(
                f"the index at {folder} is unfinished ({manifest.examples} rows): run fit again, it continues"
            )
        for shard in manifest.shards:
            file = folder / shard.file
            size = file.stat().st_size if file.exists() else None
            if size != shard.bytes:
                raise StoreError(
                    f"{file}: expected {shard.bytes} bytes, got {'no file' if size is None else size}; rebuild the index"
                )
        return cls(folder, manifest)

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
            with safe_open(self.path / shard.file, framework="pt") as file:
                for start in range(0, shard.rows, rows):
                    part = slice(start, min(start + rows, shard.rows))

                    def read(name: str, part: slice = part, file: Any = file) -> Tensor:
                        tensor: Tensor = file.get_slice(f"{name}.{layer}")[part]
                        return tensor

                    yield decode(entry, shard.start + start, read, self.manifest.bits)

    def losses(self) -> Tensor:
        """Training loss of every example when it was indexed [N], float32."""
        return torch.cat([self._read(shard.file, "loss") for shard in self.manifest.shards])

    def ids(self) -> Ids:
        """The rows' ids; their positions where the user gave none."""
        if "ids.safetensors" not in self.manifest.files:
            return list(range(len(self)))
        return decode_ids(load((self.path / "ids.safetensors").read_bytes()))

    def _read(self, file: str, name: str) -> Tensor:
        with safe_open(self.path / file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor


class StoreWriter:
    """Appends rows of factors; closes a shard at every `shard_rows`, and lists it in the manifest once it is on disk."""

    def __init__(self, path: Path, manifest: Manifest, shard_rows: int) -> None:
        """Continue the store of `manifest` at `path`."""
        self.path, self.manifest, self.shard_rows = path, manifest, shard_rows
        (path / SHARDS).mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Tensor]] = []
        self._energies: list[dict[str, Tensor]] = []
        self._pending = 0
        self._digest = ExampleDigest()

    @property
    def finished(self) -> int:
        """Rows in finished shards."""
        return self.manifest.examples

    def append(
        self, gradients: dict[str, Stored], energies: dict[str, Tensor], losses: Tensor, batch: Batch, skip: int
    ) -> None:
        """Add the rows of one batch from `skip` on; writes every shard that becomes full.

        Args:
            gradients: of each layer, as they are stored.
            energies: squared norms [B] of each layer's gradients before factoring and coding.
            losses: [B].
            batch: what they were made from.
            skip: rows already written.
        """
        size = batch_rows(batch)
        rows = {
            f"{name}.{layer.name}": tensor
            for layer in self.manifest.layers
            for name, tensor in encode(layer, gradients[layer.name], self.manifest.bits).items()
        }
        rows["loss"] = losses.to("cpu", torch.float32)
        while skip < size:
            stop = min(size, skip + self.shard_rows - self._pending)
            self._rows.append({name: tensor[skip:stop] for name, tensor in rows.items()})
            self._energies.append(
                {name: energy[skip:stop].to("cpu", torch.float64) for name, energy in energies.items()}
            )
            self._digest.update(batch, skip, stop)
            self._pending += stop - skip
            skip = stop
            if self._pending == self.shard_rows:
                self._flush()

    def close(self, ids: Ids | None) -> Manifest:
        """Write the last shard and the ids; the store is then complete.

        Raises:
            StoreError: there are no rows, or not as many ids as rows.
        """
        if self._pending:
            self._flush()
        if not self.finished:
            raise StoreError("the loader gave no examples: nothing to index")
        files = dict(self.manifest.files)
        if ids is not None:
            if len(ids) != self.finished:
                raise StoreError(f"expected one id a training example: got {len(ids)} ids for {self.finished} examples")
            files["ids.safetensors"], _ = write_tensors(self.path / "ids.safetensors", encode_ids(ids))
        self.manifest = self.manifest.with_(complete=True, files=files)
        self.manifest.write(self.path)
        return self.manifest

    def _flush(self) -> None:
        file = f"{SHARDS}/{len(self.manifest.shards):05d}.safetensors"
        tensors = {name: torch.cat([part[name] for part in self._rows]) for name in self._rows[0]}
        sha, size = write_tensors(self.path / file, tensors)
        energy = {name: float(torch.cat([part[name] for part in self._energies]).sum()) for name in self._energies[0]}
        entry = ShardEntry(file, self.finished, self._pending, size, sha, self._digest.take(), energy)
        self.manifest = self.manifest.with_(shards=[*self.manifest.shards, entry])
        self.manifest.write(self.path)
        self._rows, self._energies, self._pending = [], [], 0


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
        end = shard.start + shard.rows
        stop = min(done, end - start)
        if stop <= position:
            continue
        digest.update(batch, position, stop)
        position = stop
        if start + stop == end and digest.take() != shard.data:
            raise StoreError(
                f"the loader's rows {shard.start} to {end - 1} are not those {shard.file} in {folder} was made from: "
                "the data or its order changed; index it into another folder, or remove this one"
            )
    return done


def shard_rows(bytes_per_example: int) -> int:
    """Rows of a shard: about `SHARD_BYTES`, so that memory does not grow with the model or the data."""
    return max(1, min(65_536, SHARD_BYTES // max(bytes_per_example, 1)))


def encode_ids(ids: Sequence[str] | Sequence[int]) -> dict[str, Tensor]:
    """Ids as tensors: integers as they are, strings as UTF-8 bytes and offsets.

    Raises:
        StoreError: ids are of mixed or other types, or not unique.
    """
    if len(set(ids)) != len(ids):
        seen: set[object] = set()
        twice = [x for x in ids if x in seen or seen.add(x)]  # type: ignore[func-returns-value]
        raise StoreError(f"ids must be unique: {len(twice)} repeat, the first are {twice[:5]}")
    if all(isinstance(x, int) and not isinstance(x, bool) for x in ids):
        return {"integers": torch.tensor(ids, dtype=torch.int64)}
    if not all(isinstance(x, str) for x in ids):
        raise StoreError(f"ids must be all strings or all integers, got {sorted({type(x).__name__ for x in ids})}")
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


def verify(
    path: str | Path,
    model: nn.Module | None = None,
    loader: Iterable[Batch] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Every problem of the index at `path`, one sentence each; empty when it is whole.

    Reads every byte: a flipped bit in any file, a missing or foreign shard; with `model`, whether it is the model indexed;
    with `loader`, whether its examples are those indexed.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder)
    except StoreError as error:
        return [str(error)]
    problems = (
        [] if manifest.complete else [f"{folder} is unfinished ({manifest.examples} rows): run fit again, it continues"]
    )
    expected = {shard.file: shard.sha256 for shard in manifest.shards} | manifest.files
    for number, (file, sha) in enumerate(expected.items()):
        if not (folder / file).exists():
            problems.append(f"{folder / file} is missing")
        elif file_digest(folder / file) != sha:
            problems.append(f"{folder / file} is damaged: its bytes do not match the manifest's sha256")
        if progress is not None:
            progress(number + 1, len(expected))
    listed = {(folder / file).resolve() for file in expected}
    problems += [
        f"{x} is not listed in the manifest" for x in sorted((folder / SHARDS).glob("*")) if x.resolve() not in listed
    ]
    if model is not None and model_fingerprint(model) != manifest.model:
        problems.append(
            f"{folder} was made from another model: expected fingerprint {manifest.model[:12]}, got {model_fingerprint(model)[:12]}"
        )
    if loader is not None:
        problems += _verify_data(folder, manifest, loader)
    return problems


def _verify_data(folder: Path, manifest: Manifest, loader: Iterable[Batch]) -> list[str]:
    digest, start = ExampleDigest(), 0
    for batch in loader:
        try:
            check_rows(folder, manifest, batch, start, digest)
        except StoreError as error:
            return [str(error)]
        start += batch_rows(batch)
    return (
        [] if start == manifest.examples else [f"{folder} holds {manifest.examples} examples, the loader gave {start}"]
    )
