"""Building an index by several workers: each indexes consecutive rows in a folder of its own, then one joins them.

Axes: N training examples, R workers (ranks of a process group, Ray tasks, ...).

    manifest.json         the head, made by one worker: options, layers, projections; it lists no shards until the join
    parts/split.json      N, R and the rows of a shard: which rows each worker has
    parts/<r>-of-<R>/     what worker r has done so far, a store of its own, continued like any other
    shards/               the parts' shards under their final numbers, once all parts are finished

Parts end where shards end, and a batch that two parts share is run whole by both, so the files are those of a build by one
process, bit by bit. (Texts sorted by length in windows may fall into other windows, which changes rounding only.) Where
that would leave a worker fewer than `SHARDS_EACH` shards, shards are made smaller: the same rows in more files.

A worker that died is started again, as often as need be; so is the join. Every worker needs to see one folder.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.utils.data.distributed import DistributedSampler

from lorif_core.atomic import file_digest, single_writer, sync_folder, write_bytes
from lorif_core.codecs import row_bytes
from lorif_core.errors import StoreError
from lorif_core.index import PARTS, SPLIT, Build, Part
from lorif_core.loaders import batch_sizes, stretch
from lorif_core.manifest import MANIFEST, SHARDS, Manifest, ShardEntry, read_manifest
from lorif_core.remote import publish
from lorif_core.store import Ids, encode_ids, shard_rows, write_ids

log = logging.getLogger(__name__)

SHARDS_EACH = 4
"""Shards a worker has at least, so that none has more than a fourth more rows than another."""


@dataclass(frozen=True)
class Split:
    """Which rows each worker builds."""

    examples: int
    workers: int
    shard_rows: int

    def rows(self, worker: int) -> range:
        """The rows of one worker, 0 .. R - 1: a whole number of shards, the last one's end aside; maybe none."""
        shards = -(-self.examples // self.shard_rows)
        start, stop = (self.shard_rows * (shards * w // self.workers) for w in (worker, worker + 1))
        return range(min(start, self.examples), min(stop, self.examples))


def make_head(build: Build, workers: int) -> None:
    """Prepare `build.path` for `build_part`: everything but the rows; what is there already is checked and kept.

    Run by one worker, before the others. An index that is finished is compared with the loader's rows.

    Raises:
        StoreError: the folder holds another index, one begun by another number of workers, or another process writes it;
            there are no examples, or not as many ids.
        ValueError: the loader shuffles or gives each rank other rows, a layer cannot be attributed.
    """
    if workers < 1:
        raise ValueError(f"workers: expected an integer >= 1, got {workers}")
    for sampler in (getattr(build.loader, "sampler", None), getattr(build.loader, "batch_sampler", None)):
        if isinstance(sampler, DistributedSampler) or isinstance(getattr(sampler, "sampler", None), DistributedSampler):
            raise ValueError(
                "the loader gives each rank other rows (DistributedSampler), but fit splits the rows itself: pass the plain "
                "loader of all rows (with Fabric: setup_dataloaders(..., use_distributed_sampler=False))"
            )
    if (build.path / MANIFEST).exists() and read_manifest(build.path).complete:
        build.run()
        return
    manifest = build.head()
    if manifest.shards:
        raise StoreError(
            f"{build.path} holds {manifest.examples} rows that one process indexed: finish it with one, or remove the folder"
        )
    examples = sum(batch_sizes(build.loader))
    if build.ids is not None:
        encode_ids(build.ids)  # refuses ids that repeat
        if len(build.ids) != examples:
            raise StoreError(f"expected one id a training example: got {len(build.ids)} ids for {examples} examples")
    most = shard_rows(row_bytes(manifest.layers, manifest.bits))
    split = Split(examples, workers, min(most, max(1, -(-examples // (workers * SHARDS_EACH)))))
    folder = build.path / PARTS
    if (folder / SPLIT).exists():
        _check_split(build.path, split)
    folder.mkdir(exist_ok=True)
    write_bytes(folder / SPLIT, json.dumps(asdict(split)).encode())


def build_part(build: Build, worker: int, workers: int) -> None:
    """Index the rows of one worker, continuing what an earlier call left; nothing where the index is finished.

    Args:
        build: the same for all workers: the loader gives all rows, the path is that of the whole.
        worker: which one, 0 .. R - 1.
        workers: R, as `make_head` was told.

    Raises:
        StoreError: there is no head, or one of another model, options, rows or number of workers; another process builds
            this part.
        ValueError: a gradient is not finite.
    """
    if not (build.path / MANIFEST).exists():
        raise StoreError(
            f"{build.path} has not been prepared (make_head), or is not the same folder here: all workers must see one disk"
        )
    if read_manifest(build.path).complete:
        return
    sizes = batch_sizes(build.loader)
    split = read_split(build.path)
    _check_split(build.path, replace(split, examples=sum(sizes), workers=workers))
    rows = split.rows(worker)
    if not rows:
        return
    ends = list(accumulate(sizes))  # row after each batch
    first = next(i for i, end in enumerate(ends) if end > rows.start) // build.bucket * build.bucket
    last = next(i for i, end in enumerate(ends) if end >= rows.stop) + 1
    log.info("part %d of %d: rows %d to %d", worker + 1, workers, rows.start, rows.stop - 1)
    replace(
        build,
        loader=stretch(build.loader, first, last),
        path=_part(build.path, worker, workers),
        ids=list(rows) if build.ids is None else build.ids[rows.start : rows.stop],
        progress=lambda what, done, total: build.progress(f"{what}, part {worker + 1} of {workers}", done, total),
        part=Part(build.path, rows.start - ends[first] + sizes[first], len(rows), split.shard_rows),
    ).run()


def rows_done(folder: Path) -> int:
    """Rows on disk of all parts of the index that is being built in `folder`."""
    return sum(read_manifest(x.parent).examples for x in (folder / PARTS).glob(f"*/{MANIFEST}"))


def join(folder: Path, ids: Ids | None) -> Manifest:
    """Make one index of finished parts; interrupted at any moment, the next call finishes it.

    Args:
        folder: of the whole.
        ids: one a row; None = none are kept.

    Raises:
        StoreError: a part is unfinished, missing or damaged, or another process writes the folder.
    """
    with single_writer(folder):
        manifest = read_manifest(folder)
        if not manifest.complete:
            split = read_split(folder)
            parts = {w: _finished_part(folder, manifest, split, w) for w in range(split.workers) if split.rows(w)}
            manifest = _joined(folder, manifest, split, parts, ids)
            manifest.write(folder)
        if (folder / PARTS).exists():
            shutil.rmtree(folder / PARTS)
        publish(folder)
    return manifest


def _joined(folder: Path, manifest: Manifest, split: Split, parts: dict[int, Manifest], ids: Ids | None) -> Manifest:
    """Move all shards to where they belong; the manifest that lists them."""
    shards: list[ShardEntry] = []
    (folder / SHARDS).mkdir(exist_ok=True)
    for worker, part in parts.items():
        for entry in part.shards:
            target = f"{SHARDS}/{len(shards):05d}.safetensors"
            _move(_part(folder, worker, split.workers) / entry.file, folder / target, entry)
            shards.append(replace(entry, file=target, start=split.rows(worker).start + entry.start))
    sync_folder(folder / SHARDS)
    if ids is not None:
        manifest = write_ids(folder, manifest, ids)
    return manifest.with_(shards=shards, complete=True)


def _move(source: Path, target: Path, entry: ShardEntry) -> None:
    """Rename a shard; one that is not there must have been moved before."""
    if source.exists():
        if source.stat().st_size != entry.bytes:
            raise StoreError(
                f"{source}: expected {entry.bytes} bytes, got {source.stat().st_size}: remove its part's folder and run again"
            )
        source.replace(target)
    elif not target.exists() or file_digest(target) != entry.sha256:
        raise StoreError(f"{source} is missing: remove its part's folder and run again")


def _finished_part(folder: Path, head: Manifest, split: Split, worker: int) -> Manifest:
    """The manifest of a part that holds all of its rows and was made with the index's head; StoreError otherwise."""
    part, rows = _part(folder, worker, split.workers), split.rows(worker)
    found = read_manifest(part)
    if not found.complete or found.examples != len(rows):
        raise StoreError(f"{part} has {found.examples} of {len(rows)} rows: build it to its end, then join")
    bare: dict[str, Any] = {"shards": [], "files": {}, "complete": False}
    if found.with_(**bare) != head.with_(**bare):
        raise StoreError(f"{part} was not made with the head in {folder}: remove {folder / PARTS} and run again")
    return found


def _part(folder: Path, worker: int, workers: int) -> Path:
    return folder / PARTS / f"{worker}-of-{workers}"


def read_split(folder: Path) -> Split:
    """How `make_head` split the rows of the index in `folder`.

    Raises:
        StoreError: it did not, or the file is damaged.
    """
    file = folder / PARTS / SPLIT
    try:
        return Split(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StoreError(f"{file} is missing: one worker prepares the folder before the others start") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise StoreError(f"{file} is damaged ({error}): remove {folder} and run again") from None


def _check_split(folder: Path, wanted: Split) -> None:
    """Nothing, when the parts in `folder` are split as wanted; StoreError otherwise."""
    found = read_split(folder)
    if found.workers != wanted.workers:
        raise StoreError(
            f"{folder} was begun by {found.workers} workers, now there are {wanted.workers}: continue with "
            f"{found.workers}, or remove {folder / PARTS} to begin again"
        )
    if found != wanted:
        raise StoreError(
            f"{folder} was begun for {found.examples} examples, the loader gives {wanted.examples}: the data changed; "
            "index it into another folder, or remove this one"
        )
