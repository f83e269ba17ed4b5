"""Is a file what was written? A fast sum for every first read, sha256 where every byte must be vouched for.

`word_sum` adds the 8-byte words of each MiB and hashes the sums: any one changed byte changes it, and it costs a fraction of
reading the file, where sha256 takes about as long as a query. It is no protection against somebody who forges a file.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import numpy as np

from lorif_core.atomic import file_digest
from lorif_core.errors import StoreError

WORDS = 2**17
"""8-byte words of a chunk: 1 MiB."""

_checked: set[tuple[str, str, int, int, int]] = set()
"""Files this process has found whole: path, sha256, and what the file system says of them."""


def word_sum(data: bytes | mmap.mmap) -> str:
    """The digest of a file's content described above, 32 hexadecimal digits."""
    whole = len(data) // 8
    words = np.frombuffer(data, dtype="<u8", count=whole)
    full = whole // WORDS * WORDS
    sums = [*words[:full].reshape(-1, WORDS).sum(1), words[full:].sum()]
    rest = bytes(data[whole * 8 :])
    return hashlib.sha256(np.array(sums, dtype="<u8").tobytes() + rest + str(len(data)).encode()).hexdigest()[:32]


def check_once(path: Path, sha256: str, words: str) -> None:
    """Nothing, for a whole file; its bytes are read the first time this process asks, and again when the file changed.

    Args:
        path: of the file.
        sha256: of its bytes.
        words: its `word_sum`; empty where an older release wrote it, and sha256 has to do.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        facts = path.stat()
        key = (str(path.absolute()), sha256, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if key in _checked:
            return
        whole = file_sum(path) == words if words else file_digest(path) == sha256
    except FileNotFoundError:
        raise StoreError(missing(path)) from None
    if not whole:
        raise StoreError(f"{path} is damaged: its bytes do not match the manifest's; restore it or rebuild the index")
    _checked.add(key)


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of a small file.

    Raises:
        StoreError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreError(missing(path)) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(f"{path} is damaged: its bytes do not match the manifest's; restore it or rebuild the index")
    return data


def forget() -> None:
    """Let `check_once` read every file again."""
    _checked.clear()


def missing(path: Path) -> str:
    """What to say where a listed file is not there."""
    return (
        f"{path} is missing: if rows were purged or shards compacted since this index was opened, open it again; "
        "else restore the file or rebuild the index"
    )


def file_sum(path: Path) -> str:
    """`word_sum` of a file."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return word_sum(b"")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return word_sum(mapped)
