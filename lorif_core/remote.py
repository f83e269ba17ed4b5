"""An index in object storage, by an fsspec URL (`s3://bucket/index`): worked on in a local copy, published file by file.

Files of an index never change once listed, and its manifest says which there are. So a copy needs those files it lacks, each
checked by its sha256; and a change is published as it is made here: new files, then the manifest, then what it no longer
lists is deleted. Readers elsewhere see the old index or the new one. A killed writer's work is kept in the copy and, shard by
shard, in the storage, so that `fit` and `append` go on here or on another machine.

Copies are folders of `LORIF_CACHE` (~/.cache/lorif by default). fsspec and the package of the storage (s3fs for s3://) are
needed, and only for URLs.

Limitations: the copy takes as much disk as the index. Object stores have no locks: a writer that finds the manifest changed by
another is refused, but two that publish in the same instant are not told apart. A bucket that keeps old versions keeps purged
bytes too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorif_core.atomic import file_digest, remove, remove_shared, replacing, single_writer, write_bytes
from lorif_core.errors import StoreError
from lorif_core.manifest import APPEND, MANIFEST, QUERIES, SHARDS, parse_manifest

ORIGIN = ".origin"
"""In a copy: the URL, and the digests of its manifests as they were when both were last the same."""
KINDS = ("ids.", "curvature.", f"{SHARDS}/")
"""How the names of files begin that a change may do away with."""


def checkout(path: str | Path) -> Path:
    """The folder to work in: `path` itself, or the copy of a URL, brought up to date.

    Raises:
        StoreError: fsspec is not installed, the copy and the storage both changed, or a file there is damaged.
    """
    if "://" not in str(path):
        if isinstance(path, Path) and re.match(r"\w{2,}:", path.parts[0] if path.parts else ""):
            raise StoreError(f"{path}: give a URL as a string; pathlib makes one slash of two")
        return Path(path)
    url = str(path).rstrip("/")
    cache = Path(os.environ.get("LORIF_CACHE") or Path.home() / ".cache" / "lorif")
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    storage = _Storage.of(url)
    there, known = storage.manifests(), _known(folder)
    if known is None or not _between(_digests(there), known["digests"], _digests(_manifests(folder))):
        with single_writer(folder):
            _pull(folder, storage, there)
    return folder


def is_there(path: str | Path) -> bool:
    """Whether `path`, a folder or a URL, holds an index, finished or not.

    Raises:
        StoreError: the URL cannot be used.
    """
    if "://" not in str(path):
        return (Path(path) / MANIFEST).is_file()
    return MANIFEST in _Storage.of(str(path).rstrip("/")).manifests()


@contextmanager
def fresh_copy(path: str | Path) -> Iterator[Path]:
    """The folder at `path`, or a copy of all that a URL holds now.

    Raises:
        StoreError: a file there is missing or damaged.
    """
    if "://" not in str(path):
        yield Path(path)
        return
    storage = _Storage.of(str(path).rstrip("/"))
    with TemporaryDirectory() as name:
        _pull(Path(name), storage, storage.manifests())
        yield Path(name)


def unlisted(path: str | Path) -> list[str]:
    """What of a URL no manifest there lists: left by a killed writer, or by one that is at work; none for a folder."""
    if "://" not in str(path):
        return []
    storage = _Storage.of(str(path).rstrip("/"))
    listed = _listed(storage.manifests(), storage.url)
    return sorted(f"{storage.url}/{name}" for name in storage.names() - listed.keys() if name.startswith(KINDS))


def publish(folder: Path) -> None:
    """Make the storage of a copy what the copy is, and remove there what no manifest lists; nothing for any other folder.

    Raises:
        StoreError: the storage was changed by another writer meanwhile.
    """
    known = _known(folder)
    if known is None:
        return
    here, storage = _manifests(folder), _Storage.of(known["url"])
    there = storage.manifests()
    if not _between(_digests(there), known["digests"], _digests(here)):
        if _digests(here) == known["digests"]:
            raise StoreError(f"{storage.url} was changed by another writer since it was opened here: open it again")
        raise _conflict(folder, storage.url)
    storage.put(folder, here, there)
    if _digests(here) != known["digests"]:
        _note(folder, storage.url, here)


@dataclass(frozen=True)
class _Storage:
    """A folder of an fsspec file system."""

    url: str
    files: Any
    root: str

    @classmethod
    def of(cls, url: str) -> _Storage:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise StoreError(f"{url}: install fsspec and the package for this kind of URL (s3fs for s3://)") from None
        try:
            files, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url}: {error}") from None
        return cls(url, files, root)

    def manifests(self) -> dict[str, bytes]:
        """The bytes of the manifests there are."""
        found = {}
        for name in (MANIFEST, APPEND):
            try:
                found[name] = self.files.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                continue
        return found

    def get(self, name: str, path: Path, sha256: str) -> None:
        path.parent.mkdir(exist_ok=True)
        digest = hashlib.sha256()
        try:
            with self.files.open(f"{self.root}/{name}", "rb") as source, replacing(path) as target:
                while part := source.read(2**22):
                    digest.update(part)
                    target.write(part)
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{name} is missing: restore it or rebuild the index") from None
        if digest.hexdigest() != sha256:
            path.unlink()
            raise StoreError(f"{self.url}/{name} is damaged: its bytes do not match the manifest's sha256")

    def names(self) -> set[str]:
        """What there is, relative to the index."""
        return {name.removeprefix(self.root).lstrip("/") for name in self.files.find(self.root)}

    def put(self, folder: Path, here: dict[str, bytes], there: dict[str, bytes]) -> None:
        """Files that the manifests `there` do not list, then the manifests; then delete what those `here` do not list.

        A file that is there but not listed is another's of the same name, or half of one.
        """
        listed = _listed(here, folder)
        for name, _ in sorted(listed.items() - _listed(there, self.url).items()):
            self.files.put_file(str(folder / name), f"{self.root}/{name}")
        for name in (APPEND, MANIFEST):
            if name in here and here[name] != there.get(name):
                self.files.pipe_file(f"{self.root}/{name}", here[name])
        present = self.names()
        gone = {name for name in present - listed.keys() if name.startswith(KINDS)}
        for name in gone | ({APPEND} & present - here.keys()):
            self.files.rm_file(f"{self.root}/{name}")


def _pull(folder: Path, storage: _Storage, there: dict[str, bytes]) -> None:
    """Make the copy what the storage is; a copy with changes that were not published is never overwritten.

    Raises:
        StoreError: it has such changes; a file there is missing or damaged.
    """
    known, here = _known(folder), _manifests(folder)
    if known is not None and not _between(_digests(here), known["digests"], _digests(there)):
        raise _conflict(folder, storage.url)
    while _digests(here) != _digests(there):
        try:
            listed = _fetched(folder, storage, here, there)
        except StoreError:
            now = storage.manifests()
            if now == there:
                raise
            there = now  # a writer changed the index, and deleted what it no longer lists, while it was fetched
            continue
        for name in (APPEND, MANIFEST):
            if name in there:
                write_bytes(folder / name, there[name])
            else:
                (folder / name).unlink(missing_ok=True)
        for path in [*folder.glob("*.safetensors"), *folder.glob(".*.tmp"), *(folder / SHARDS).glob("*")]:
            if path.relative_to(folder).as_posix() not in listed:
                remove(path)
        remove_shared(folder / QUERIES)  # rows may have been purged elsewhere
        here = there
    _note(folder, storage.url, there)


def _fetched(folder: Path, storage: _Storage, here: dict[str, bytes], there: dict[str, bytes]) -> dict[str, str]:
    """Get what the copy lacks of the files that the storage's manifests list, and give their sha256."""
    listed, kept = _listed(there, storage.url), _listed(here, folder)
    for name, sha256 in listed.items():
        path = folder / name  # unlisted, it is what was fetched before a kill, or of a change that never came to be
        if not path.exists() or (kept.get(name) != sha256 and file_digest(path) != sha256):
            storage.get(name, path, sha256)
    return listed


def _listed(manifests: dict[str, bytes], place: Path | str) -> dict[str, str]:
    """sha256 of every file that manifests list, which are those of `place`."""
    found = {}
    for name, data in manifests.items():
        manifest = parse_manifest(data, f"{place}/{name}")
        found.update(manifest.files)
        found.update({shard.file: shard.sha256 for shard in manifest.shards})
    return found


def _between(one: dict[str, str], before: dict[str, str], after: dict[str, str]) -> bool:
    """Whether each manifest of `one` is that of `before` or of `after`: a change between them is not, half or all made."""
    return all(one.get(name) in (before.get(name), after.get(name)) for name in (MANIFEST, APPEND))


def _manifests(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (MANIFEST, APPEND) if (folder / name).exists()}


def _digests(manifests: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in manifests.items()}


def _known(folder: Path) -> dict[str, Any] | None:
    path = folder / ORIGIN
    known: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return known


def _note(folder: Path, url: str, manifests: dict[str, bytes]) -> None:
    write_bytes(folder / ORIGIN, json.dumps({"url": url, "digests": _digests(manifests)}).encode())


def _conflict(folder: Path, url: str) -> StoreError:
    return StoreError(
        f"{url} was changed by another writer, and its copy {folder} holds changes that were not published: remove the copy "
        "to give them up, then repeat them"
    )
