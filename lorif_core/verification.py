"""Everything that can be wrong with an index on disk, found by reading every byte of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

from lorif_core.atomic import file_digest
from lorif_core.digests import ExampleDigest, model_fingerprint
from lorif_core.errors import StoreError
from lorif_core.manifest import APPEND, Manifest, read_manifest
from lorif_core.objectives import Batch, batch_rows
from lorif_core.remote import fresh_copy, unlisted
from lorif_core.revisions import links, pending_append, strays
from lorif_core.store import check_rows, not_comparable

log = logging.getLogger(__name__)


def verify(
    path: str | Path,
    model: nn.Module | None = None,
    loader: Iterable[Batch] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Every problem of the index at `path`, one sentence each; empty when it is whole.

    Reads every byte: a flipped bit in any file, a missing or foreign shard, what a killed writer left; with `model`, whether
    it is the model indexed; with `loader`, whether its examples are those indexed (in a shard that rows were purged from,
    only how many there are: the log says for how many rows). Of a URL (lorif_core.remote) all files are fetched anew.
    """
    try:
        with fresh_copy(path) as folder:
            problems = _problems(folder, model, loader, progress or (lambda done, total: None))
        return problems + [_stray(file) for file in unlisted(path)]
    except StoreError as error:
        return [str(error)]


def _problems(
    folder: Path, model: nn.Module | None, loader: Iterable[Batch] | None, progress: Callable[[int, int], None]
) -> list[str]:
    manifest = read_manifest(folder)
    pending = pending_append(folder, manifest)
    problems = []
    if not manifest.complete:
        problems.append(f"{folder} is unfinished ({manifest.examples} rows): run fit again, it continues")
    if pending is not None:
        rows = pending.examples - manifest.examples
        problems.append(
            f"{folder} has an unfinished append ({rows} rows): call append again, it continues, or remove {APPEND}"
        )
    expected = {shard.file: shard.sha256 for shard in (pending or manifest).shards} | manifest.files
    for number, (file, sha) in enumerate(expected.items()):
        if not (folder / file).exists():
            problems.append(f"{folder / file} is missing")
        elif file_digest(folder / file) != sha:
            problems.append(f"{folder / file} is damaged: its bytes do not match the manifest's sha256")
        progress(number + 1, len(expected))
    problems += [
        f"{file} is a symbolic link, which purge refuses: put the file itself in its place"
        for file in links(folder, manifest)
    ]
    problems += [_stray(file) for file in strays(folder, manifest)]
    if model is not None and (found := model_fingerprint(model)) != manifest.model:
        problems.append(
            f"{folder} was made from another model: expected fingerprint {manifest.model[:12]}, got {found[:12]}"
        )
    if loader is not None:
        problems += _verify_data(folder, manifest, loader)
    return problems


def _stray(file: Path | str) -> str:
    return f"{file} is not listed in the manifest: the next call that writes removes it"


def _verify_data(folder: Path, manifest: Manifest, loader: Iterable[Batch]) -> list[str]:
    digest, start = ExampleDigest(), 0
    for batch in loader:
        try:
            check_rows(folder, manifest, batch, start, digest)
        except StoreError as error:
            return [str(error)]
        start += batch_rows(batch)
    if start != manifest.examples:
        return [f"{folder} holds {manifest.examples} examples, the loader gave {start}"]
    if unchecked := not_comparable(manifest):
        log.warning("%d rows of %s could only be counted: others were purged from among them", unchecked, folder)
    return []
