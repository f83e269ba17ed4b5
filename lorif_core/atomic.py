"""Files that are either whole or absent: written aside, fsynced, renamed; and one writer at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from lorif_core.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

_held: set[TextIO] = set()
"""The lock files of this process's writers."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside `path`; synced to disk and renamed to it when the block ends well, removed otherwise.

    At any moment, also after a power cut, there is the old file, the whole new one, or none.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put on disk which files a folder has."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove(path: Path) -> None:
    """Remove a file, or a folder and all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_shared(folder: Path) -> None:
    """Remove a folder that others may be writing to, who then make another; nothing where there is none."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        folder.replace(aside)
        shutil.rmtree(aside)


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` atomically and durably; returns its sha256, of what was meant to be written."""
    with replacing(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Write a safetensors file atomically; returns (sha256, bytes)."""
    from safetensors.torch import save  # the other writers need no torch

    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return write_bytes(path, data), len(data)


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def single_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; it goes with the process, however that ends.

    Raises:
        StoreError: there is no such folder, or another process is writing there; it names that one's pid and host.
    """
    if not folder.is_dir():
        raise StoreError(f"no index at {folder}: there is no such folder")
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StoreError(
                f"{folder} is being written by another process (pid {holder}); wait for it or stop it"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _let_go() -> None:
    """In a forked child, a loader's worker say, which would keep the lock for as long as it lives."""
    for file in _held:
        file.close()  # the parent's lock stays
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
