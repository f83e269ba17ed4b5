"""Removing examples from a finished index, so that nothing of them is left on disk.

Axes: n rows of a shard.

Shards that hold them are written anew without them, under new names; so are the ids and the curvature. Once the manifest lists
the new files the old ones are unlinked; killed in between, the next call of any writer, of `purge` too, unlinks them.

Limitations: a pca projection was computed from these examples among all others and stays as it is. So do, unless it is
fitted anew (`refit`), the directions of the curvature, rotated; one may still be close to the gradient of a removed row that
was much larger than all others. A reader that opened the index before may put its queries beside it afterwards; the copy of a
URL on another machine loses the rows when it is next opened there. Symbolic links are refused; of hard links and other copies
nothing is known. Unlinked blocks are not overwritten: on media where that matters, encrypt the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorif_core.atomic import remove_shared, single_writer
from lorif_core.blocks import Block
from lorif_core.codecs import decode
from lorif_core.curvature import MEMORY_LIMIT
from lorif_core.errors import StoreError
from lorif_core.kept import write_curvature
from lorif_core.manifest import QUERIES, LayerEntry, Manifest, ShardEntry, Span
from lorif_core.remote import checkout
from lorif_core.revisions import begin, commit, links
from lorif_core.store import FactorStore, Ids, listed_ids, write_ids, write_shard
from lorif_core.updates import ROWS, fitted_anew, update_curvature

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Purged:
    """What `purge` did."""

    rows: int
    """Rows removed."""
    shards: tuple[str, ...]
    """Files, inside the index, that held them and are gone."""
    not_found: tuple[str | int, ...]
    """Ids that the index does not have: unknown, or purged before."""


def purge(
    path: str | Path,
    ids: Sequence[str] | Sequence[int],
    device: torch.device | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
    *,
    refit: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> Purged:
    """Remove the rows with these ids from the index at `path`, and what remains of them anywhere in it.

    The curvature follows (lorif_core.updates). Rows that come after move up; where the user gave no ids, every row keeps the
    number it had as its id. Purging again is harmless, and finishes a call that was killed. Needs the disk space of the
    shards that hold such rows a second time.

    Args:
        path: of a finished index.
        ids: of the rows to remove.
        device: where curvature is updated; the CPU if left out.
        progress: told (what, done, in all).
        refit: fit the curvature anew from the rows that stay, rather than update it.
        memory_limit: bytes of the sums a pass over the index may hold, where it is fitted anew.

    Raises:
        StoreError: there is no index, it is damaged or unfinished, another process writes it, or nothing would be left; a file
            of it is a symbolic link; ids are no strings or integers.
    """
    wanted = set(listed_ids(ids))
    folder = checkout(path)
    with single_writer(folder):
        manifest = begin(folder)
        if linked := links(folder, manifest):
            raise StoreError(
                f"{linked[0]} is a symbolic link ({len(linked)} in all): the rows would stay where it points to; put the file "
                "itself in its place, then purge"
            )
        store = FactorStore(folder, manifest)
        known = store.ids()
        gone = {row for row, one in enumerate(known) if one in wanted}
        missing = tuple(sorted(wanted - {known[row] for row in gone}, key=str))
        remove_shared(folder / QUERIES)  # any of which may be a training example
        if not gone:
            return Purged(0, (), missing)
        if len(gone) == len(known):
            raise StoreError(f"all {len(known)} rows of {folder} would go: remove the folder instead")
        rows = {shard.file: _rows_of(shard, gone) for shard in manifest.shards}
        after = _rewritten(store, rows, progress or _silent)
        after = write_ids(folder, after, _without(known, gone))
        numbered = manifest.numbered or manifest.file("ids") is None
        after = after.with_(purged=manifest.purged + len(gone), numbered=numbered)
        device, progress = device or torch.device("cpu"), progress or _silent
        after = _with_curvature(store, after, rows, device, progress, refit, memory_limit)
        commit(folder, after)
        remove_shared(folder / QUERIES)  # those that readers of the index as it was have kept meanwhile
    touched = tuple(file for file, found in rows.items() if found)
    log.info("purged %d rows of %d shards from %s", len(gone), len(touched), folder)
    return Purged(len(gone), touched, missing)


def _rows_of(shard: ShardEntry, gone: set[int]) -> list[int]:
    return [row for row in range(shard.rows) if shard.start + row in gone]


def _without(known: Ids, gone: set[int]) -> Ids:
    return [one for row, one in enumerate(known) if row not in gone]  # type: ignore[return-value]


def _rewritten(
    store: FactorStore, rows: dict[str, list[int]], progress: Callable[[str, int, int | None], None]
) -> Manifest:
    """The manifest of the next revision, its new shards on disk; a shard of which nothing is left is not there."""
    before = store.manifest
    after = before.with_(revision=before.revision + 1, shards=[])
    for number, shard in enumerate(before.shards):
        progress("purge", number, len(before.shards))
        if not rows[shard.file]:
            after = after.with_shard(shard)
            continue
        stay = torch.ones(shard.rows, dtype=torch.bool)
        stay[rows[shard.file]] = False
        if bool(stay.any()):
            with store.opened(shard) as file:
                whole = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            energy = {
                layer.name: shard.energy[layer.name] * _stored_share(layer, before.bits, whole, stay)
                for layer in before.layers
                if layer.name in shard.energy
            }
            tensors = {name: tensor[stay] for name, tensor in whole.items()}
            after = write_shard(store.path, after, tensors, _spans_without(shard.spans, rows[shard.file]), energy)
    return after


def _stored_share(layer: LayerEntry, bits: int, tensors: dict[str, Tensor], stay: Tensor) -> float:
    """Of a shard's sum of squared norms of what is stored, the part of the rows that stay; of their number where it is zero.

    What factors lost of one row is not known, only of all together: it is taken to be in proportion to what they keep.
    """
    norms = decode(layer, 0, lambda name: tensors[f"{name}.{layer.name}"], bits).squared_norms()  # [n]
    whole = float(norms.sum())
    return float(norms[stay].sum()) / whole if whole else float(stay.double().mean())


def _spans_without(spans: list[Span], rows: list[int]) -> list[Span]:
    """The spans of a shard that loses some rows; one that loses all is left out."""
    found, start = [], 0
    for span in spans:
        found.append(span.without([row - start for row in rows if start <= row < start + span.rows]))
        start += span.rows
    return [span for span in found if span.rows]


def _with_curvature(
    store: FactorStore,
    after: Manifest,
    rows: dict[str, list[int]],
    device: torch.device,
    progress: Callable[[str, int, int | None], None],
    refit: bool,
    memory_limit: int,
) -> Manifest:
    entries = {layer.name: layer for layer in after.layers}

    def changed(layer: str) -> Iterator[Block]:
        for shard in store.manifest.shards:
            if not rows[shard.file]:
                continue
            with store.opened(shard) as file:
                for part in torch.tensor(rows[shard.file]).split(ROWS):

                    def read(name: str, part: Tensor = part) -> Tensor:
                        tensor: Tensor = file.get_tensor(f"{name}.{layer}")[part]  # noqa: B023 - used at once
                        return tensor

                    yield decode(entries[layer], shard.start, read, after.bits)

    later = FactorStore(store.path, after, store.trust)
    if refit:
        found = fitted_anew(later, device, progress, memory_limit)
    else:
        found = update_curvature(
            store, later, changed, added=False, device=device, progress=progress, memory_limit=memory_limit
        )
    if found is None:
        return after.with_file("curvature", None).with_(curvature=None)
    return write_curvature(store.path, after, *found)


def _silent(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody asked for."""
