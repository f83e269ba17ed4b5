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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lorif_core.atomic import replacing, single_writer, write_bytes
from lorif_core.errors import StoreError
from lorif_core.manifest import APPEND, MANIFEST, SHARDS, read_manifest

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
        return Path(path)
    url = str(path).rstrip("/")
    cache = Path(os.environ.get("LORIF_CACHE") or Path.home() / ".cache" / "lorif")
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    storage = _Storage.of(url)
    there, known = storage.manifests(), _known(folder)
    if known is None or _digests(there) not in (known["digests"], _digests(_manifests(folder))):
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


def publish(folder: Path) -> None:
    """Make the storage of a copy what the copy is; nothing for any other folder, or where both are the same.

    Raises:
        StoreError: the storage was changed by another writer meanwhile.
    """
    known = _known(folder)
    if known is None or _digests(here := _manifests(folder)) == known["digests"]:
        return
    storage = _Storage.of(known["url"])
    if _digests(storage.manifests()) not in (known["digests"], _digests(here)):
        raise _conflict(folder, known["url"])
    storage.put(folder, _listed(folder, here), here)
    _note(folder, known["url"], here)


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

    def put(self, folder: Path, listed: dict[str, str], manifests: dict[str, bytes]) -> None:
        """Files that are not there yet, then the manifests; then delete what they do not list."""
        present = {name.removeprefix(self.root).lstrip("/") for name in self.files.find(self.root)}
        for name in listed.keys() - present:
            self.files.put_file(str(folder / name), f"{self.root}/{name}")
        for name in (APPEND, MANIFEST):
            if name in manifests:
                self.files.pipe_file(f"{self.root}/{name}", manifests[name])
        gone = {name for name in present - listed.keys() if name.startswith(KINDS)}
        for name in gone | ({APPEND} & present - manifests.keys()):
            self.files.rm_file(f"{self.root}/{name}")


def _pull(folder: Path, storage: _Storage, there: dict[str, bytes]) -> None:
    """Make the copy what the storage is; a copy with changes that were not published is never overwritten."""
    known, here = _known(folder), _manifests(folder)
    if known is not None and _digests(here) not in (known["digests"], _digests(there)):
        raise _conflict(folder, storage.url)
    if _digests(here) != _digests(there):
        for name, data in there.items():  # aside, to be read; in place once the files are
            write_bytes(folder / f"new.{name}", data)
        listed = _listed(folder, there, "new.")
        for name, sha256 in listed.items():
            if not (folder / name).exists():
                storage.get(name, folder / name, sha256)
        for name in (APPEND, MANIFEST):
            if name in there:
                (folder / f"new.{name}").replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        for path in [*folder.glob("*.safetensors"), *(folder / SHARDS).glob("*")]:
            if path.relative_to(folder).as_posix() not in listed:
                path.unlink()
    _note(folder, storage.url, there)


def _listed(folder: Path, manifests: dict[str, bytes], prefix: str = "") -> dict[str, str]:
    """sha256 of every file that manifests list."""
    found = {}
    for name in manifests:
        manifest = read_manifest(folder, prefix + name)
        found.update(manifest.files)
        found.update({shard.file: shard.sha256 for shard in manifest.shards})
    return found


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
