"""Adding examples to a finished index: new shards, new ids, and the curvature brought up to date.

What is listed by the manifest stays as it is until all is done, so that the index can be read meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from lorif_core.atomic import single_writer
from lorif_core.blocks import Block
from lorif_core.capture import frozen
from lorif_core.codecs import row_bytes
from lorif_core.digests import ExampleDigest, check_model
from lorif_core.errors import StoreError
from lorif_core.gradients import device_of, read_plan
from lorif_core.index import Build
from lorif_core.kept import write_curvature
from lorif_core.loaders import check_loader
from lorif_core.manifest import APPEND, Manifest, read_manifest
from lorif_core.objectives import batch_rows
from lorif_core.remote import publish
from lorif_core.revisions import commit, pending_append, sweep
from lorif_core.store import FactorStore, Ids, check_rows, shard_rows, write_ids
from lorif_core.updates import ROWS, update_curvature
from lorif_core.writer import StoreWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Append:
    """One call of `append`: `build` says with which model, examples and ids, and to which index."""

    build: Build

    def run(self) -> Manifest:
        """Add every example of the loader, continuing what an earlier, interrupted call began.

        Where all the ids are those of the index's last rows already, nothing is added: the call was repeated. (Without ids
        that cannot be told; the examples are then added again.)

        Raises:
            StoreError: the model is another, ids repeat, are missing or not as many as the examples, the unfinished append is
                of other examples, or another process writes the index.
            ValueError: the loader shuffles, or a loss or gradient is not finite.
        """
        build, folder = self.build, self.build.path
        check_loader(build.loader)
        build.check_ids()
        with single_writer(folder), frozen(build.model):
            manifest = self._begin()
            old = FactorStore(folder, manifest).ids()
            if self._is_repeated(manifest, old):
                log.info("%s ends with these %d examples already", folder, len(build.ids or ()))
                return manifest
            self._check_ids(manifest, old)
            written = self._write_shards(manifest)
            after = self._with_ids(manifest, written, old)
            after = self._with_curvature(manifest, after)
            commit(folder, after)
        log.info("appended %d examples to %s", after.examples - manifest.examples, folder)
        return after

    def _begin(self) -> Manifest:
        folder = self.build.path
        manifest = read_manifest(folder)
        if not manifest.complete:
            raise StoreError(f"the index at {folder} is unfinished: run fit again with its own examples before append")
        check_model(folder, manifest.model, self.build.model)
        sweep(folder, manifest)
        publish(folder)
        return manifest

    def _is_repeated(self, manifest: Manifest, old: Ids) -> bool:
        ids, folder = self.build.ids, self.build.path
        if manifest.file("ids") is None or not ids or old[-len(ids) :] != list(ids):
            return False
        digest, row = ExampleDigest(), len(old) - len(ids)
        for batch in self.build.loader:
            check_rows(folder, manifest, batch, row, digest)
            row += batch_rows(batch)
        if row != len(old):
            raise StoreError(f"expected one id an example: got {len(ids)} ids for {row - len(old) + len(ids)} examples")
        return True

    def _check_ids(self, manifest: Manifest, old: Ids) -> None:
        ids, folder = self.build.ids, self.build.path
        named = manifest.file("ids") is not None
        if ids is None:
            if named and not manifest.numbered:
                raise StoreError(f"the rows of {folder} have ids: give those of the new examples too (ids=...)")
            return
        if old and ids and type(old[0]) is not type(ids[0]):
            kind = "the integers it numbers rows with, since it was made without ids" if not named else "of one type"
            raise StoreError(f"{folder}: ids must be {kind}; the index has {old[0]!r}, the new examples {ids[0]!r}")
        known = set(old)
        if repeated := [one for one in ids if one in known]:
            raise StoreError(f"{folder} has {len(repeated)} of these ids already, the first are {repeated[:5]}")

    def _write_shards(self, manifest: Manifest) -> Manifest:
        build, folder = self.build, self.build.path
        written = pending_append(folder, manifest)
        if written is None:
            written = manifest.with_(revision=manifest.revision + 1, complete=False)
        else:
            log.info("continuing an append to %s at its row %d", folder, written.examples - manifest.examples)
        with StoreWriter(folder, written, shard_rows(row_bytes(manifest.layers, manifest.bits)), APPEND) as writer:
            rows = build.index_rows(writer, read_plan(folder, manifest, build.model), manifest.examples)
            writer.flush()
        if not rows:
            raise StoreError("the loader gave no examples: nothing to append")
        if writer.finished != manifest.examples + rows:
            raise StoreError(
                f"the unfinished append to {folder} already holds {writer.finished - manifest.examples} examples, the "
                f"loader gave only {rows}: call append with the same examples, or remove {folder / APPEND} to give it up"
            )
        if build.ids is not None and len(build.ids) != rows:
            raise StoreError(f"expected one id an example: got {len(build.ids)} ids for {rows} examples")
        return manifest.with_(revision=written.revision, shards=writer.manifest.shards)

    def _with_ids(self, manifest: Manifest, after: Manifest, old: Ids) -> Manifest:
        ids = self.build.ids
        if ids is None and manifest.file("ids") is None:
            return after
        first = manifest.examples + manifest.purged
        new = list(ids) if ids is not None else list(range(first, first + after.examples - manifest.examples))
        return write_ids(self.build.path, after, [*old, *new]).with_(numbered=ids is None)

    def _with_curvature(self, manifest: Manifest, after: Manifest) -> Manifest:
        folder, device = self.build.path, device_of(self.build.model)
        added = FactorStore(folder, after.with_(shards=after.shards[len(manifest.shards) :]))

        def changed(layer: str) -> Iterator[Block]:
            return added.blocks(layer, ROWS)

        found = update_curvature(
            FactorStore(folder, manifest),
            FactorStore(folder, after),
            changed,
            added=True,
            device=device,
            progress=self.build.progress,
            memory_limit=self.build.memory_limit,
        )
        if found is None:
            return after.with_file("curvature", None).with_(curvature=None)
        return write_curvature(folder, after, *found)
