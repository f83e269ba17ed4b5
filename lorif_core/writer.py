"""Filling a store shard by shard: one thread writes a full shard while the next one is computed.

Axes: B examples of a batch.

At most one shard is being written; a second one waits for it. What is on disk, and the order in which it gets there, are as
if the computing thread wrote: the shard, the manifest that lists it, the storage of a URL.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lorif_core.codecs import encode
from lorif_core.digests import ExampleDigest
from lorif_core.errors import StoreError
from lorif_core.manifest import MANIFEST, SHARDS, Manifest, Span
from lorif_core.objectives import Batch, batch_rows
from lorif_core.remote import publish
from lorif_core.rows import IndexRows
from lorif_core.store import Ids, write_ids, write_shard

log = logging.getLogger(__name__)


class StoreWriter:
    """Appends rows of factors; writes a shard at every `shard_rows`, and lists it in the manifest once it is on disk.

    Used in a `with` block: when it is left, also by an exception, nothing is being written any more. What fails in the
    writing thread is raised by the next `append`, `flush` or `close`.
    """

    def __init__(self, path: Path, manifest: Manifest, shard_rows: int, name: str = MANIFEST) -> None:
        """Continue the store of `manifest` at `path`, whose file there is `name`."""
        self.path, self.manifest, self.shard_rows, self.name = path, manifest, shard_rows, name
        (path / SHARDS).mkdir(parents=True, exist_ok=True)
        self._rows: list[dict[str, Tensor]] = []
        self._energies: list[dict[str, Tensor]] = []
        self._pending = 0
        self._digest = ExampleDigest()
        self._thread = ThreadPoolExecutor(1, "lorif-writer")
        self._writing: Future[Manifest] | None = None

    def __enter__(self) -> StoreWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the shard in work, whose folder may be another writer's afterwards."""
        self._thread.shutdown()
        if kind is None:
            self._settle()
        elif self._writing is not None and (other := self._writing.exception()) is not None:
            log.error("a shard of %s was not written either: %s", self.path, other)

    @property
    def finished(self) -> int:
        """Rows in finished shards, once `flush` has returned."""
        return self.manifest.examples

    def append(self, made: IndexRows, batch: Batch, skip: int) -> None:
        """Add the rows of one batch from `skip` on; has every shard written that becomes full.

        Args:
            made: the batch's rows.
            batch: what they were made from.
            skip: rows already written.
        """
        if self._writing is not None and self._writing.done():
            self._settle()
        size = batch_rows(batch)
        rows = {
            f"{name}.{layer.name}": tensor
            for layer in self.manifest.layers
            for name, tensor in encode(layer, made.gradients[layer.name], self.manifest.bits).items()
        }
        rows["loss"] = made.losses.to("cpu", torch.float32)
        while skip < size:
            stop = min(size, skip + self.shard_rows - self._pending)
            self._rows.append({name: tensor[skip:stop] for name, tensor in rows.items()})
            self._energies.append(
                {name: energy[skip:stop].to("cpu", torch.float64) for name, energy in made.energies.items()}
            )
            self._digest.update(batch, skip, stop)
            self._pending += stop - skip
            skip = stop
            if self._pending == self.shard_rows:
                self._hand_over()

    def close(self, ids: Ids | None) -> Manifest:
        """Write the last shard and the ids; the store is then complete.

        Raises:
            StoreError: there are no rows, or not as many ids as rows.
        """
        self.flush()
        if not self.finished:
            raise StoreError("the loader gave no examples: nothing to index")
        if ids is not None:
            if len(ids) != self.finished:
                raise StoreError(f"expected one id an example: got {len(ids)} ids for {self.finished} examples")
            self.manifest = write_ids(self.path, self.manifest, ids)
        self.manifest = self.manifest.with_(complete=True)
        self.manifest.write(self.path)
        return self.manifest

    def flush(self) -> None:
        """Write the rows that are waiting, if any, as a shard; everything is on disk when this returns."""
        if self._pending:
            self._hand_over()
        self._settle()

    def _hand_over(self) -> None:
        """Let the thread write the waiting rows, once it has written those before them."""
        self._settle()
        tensors = {name: torch.cat([part[name] for part in self._rows]) for name in self._rows[0]}
        energy = {name: float(torch.cat([part[name] for part in self._energies]).sum()) for name in self._energies[0]}
        spans = [Span(self._pending, self._digest.take())]
        self._rows, self._energies, self._pending = [], [], 0
        self._writing = self._thread.submit(self._write, self.manifest, tensors, spans, energy)

    def _settle(self) -> None:
        """Wait for the shard in work; raises what failed there."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self.manifest = writing.result()

    def _write(
        self, manifest: Manifest, tensors: dict[str, Tensor], spans: list[Span], energy: dict[str, float]
    ) -> Manifest:
        """In the thread: the next shard, and the manifest that lists it."""
        manifest = write_shard(self.path, manifest, tensors, spans, energy)
        manifest.write(self.path, self.name)
        publish(self.path)
        return manifest
