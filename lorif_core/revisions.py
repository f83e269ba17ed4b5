"""Changes to a finished index, each seen by readers at one moment: when its manifest replaces the one before.

A change writes new files beside the old ones (`Manifest.revision` is in their names, so they never collide), then the
manifest that lists them, then removes what that no longer lists. Killed before the manifest, nothing has happened; killed
after it, the next call of any writer removes the rest. Readers that hold an old file open keep it.

An append may take long, so it keeps a manifest of its own, `append.json`, until it is done: killed, it goes on from there.
"""

from __future__ import annotations

import logging
from pathlib import Path

from lorif_core.atomic import remove, sync_folder
from lorif_core.errors import StoreError
from lorif_core.manifest import APPEND, PARTS, QUERIES, SHARDS, Manifest, read_manifest
from lorif_core.remote import publish

log = logging.getLogger(__name__)


def begin(folder: Path) -> Manifest:
    """The manifest of a finished index about to be changed, after what a killed writer left is removed.

    Raises:
        StoreError: there is none, it is damaged or unfinished, or an append is.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise StoreError(f"the index at {folder} is unfinished ({manifest.examples} rows): run fit again, it continues")
    refuse_pending(folder, manifest)
    sweep(folder, manifest)
    publish(folder)
    return manifest


def commit(folder: Path, manifest: Manifest) -> None:
    """Make a change final, remove the files it does away with, and publish it where the folder is a copy."""
    manifest.write(folder)
    sweep(folder, manifest)
    publish(folder)


def pending_append(folder: Path, manifest: Manifest) -> Manifest | None:
    """What an unfinished append has written so far, after the shards of `manifest`; None where there is none.

    Raises:
        StoreError: its manifest is damaged.
    """
    if not (folder / APPEND).exists():
        return None
    found = read_manifest(folder, APPEND)
    return found if found.revision == manifest.revision + 1 else None  # else it was finished, but not yet removed


def refuse_pending(folder: Path, manifest: Manifest) -> None:
    """Nothing, where no append is unfinished.

    Raises:
        StoreError: one is.
    """
    if pending_append(folder, manifest) is not None:
        raise StoreError(
            f"{folder} has an unfinished append: call append again with the same examples, it continues; "
            f"or remove {folder / APPEND} to give it up"
        )


def links(folder: Path, manifest: Manifest) -> list[Path]:
    """What of the index is a symbolic link: removing it would leave the bytes it points to."""
    names = [*(shard.file for shard in manifest.shards), *manifest.files, QUERIES]
    return [folder / name for name in names if (folder / name).is_symlink()]


def strays(folder: Path, manifest: Manifest) -> list[Path]:
    """What of the store no manifest lists: a killed writer's, or what a change did away with."""
    pending = pending_append(folder, manifest)
    listed = {shard.file for one in (manifest, pending) if one is not None for shard in one.shards} | set(
        manifest.files
    )
    patterns = [".*.tmp", *(f"{kind}.*safetensors" for kind in ("ids", "projection", "curvature")), f"{SHARDS}/*"]
    patterns += [PARTS] if manifest.complete else []  # where joining them was killed at its very end
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    found += [folder / APPEND] if pending is None and (folder / APPEND).exists() else []
    return sorted(path for path in found if path.relative_to(folder).as_posix() not in listed)


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove the strays for good. Only the one writer may."""
    found = strays(folder, manifest)
    for path in found:
        remove(path)
    for parent in {path.parent for path in found}:
        sync_folder(parent)
    if found:
        log.info("removed %d files that %s no longer lists", len(found), folder)
