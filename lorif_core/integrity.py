"""Is a file what was written? A fast sum for every first read, sha256 where every byte must be vouched for.

`word_sum` adds up the 8-byte words of each MiB, seen as a table, by rows and by columns, and hashes the sums: any one changed
byte changes it, and so do two words or pages in each other's place. It costs a fraction of reading the file, where sha256
takes about as long as a query. It is no protection against somebody who forges a file.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import numpy as np

from lorif_core.atomic import file_digest
from lorif_core.errors import StoreError

TABLE = (256, 512)
"""8-byte words of a chunk: 1 MiB, a page a row."""

_checked: set[tuple[str, str, int, int, int]] = set()
"""Files this process has found whole: path, sha256, and what the file system says of them."""


def word_sum(data: bytes | mmap.mmap) -> str:
    """The digest of a file's content described above, 32 hexadecimal digits."""
    whole = len(data) // 8
    words = np.frombuffer(data, dtype="<u8", count=whole)
    size = TABLE[0] * TABLE[1]
    sha = hashlib.sha256()
    for start in range(0, whole, size):  # a chunk stays in cache for its second sum
        chunk = words[start : start + size]
        columns = TABLE[1] if len(chunk) == size else 1
        table = chunk.reshape(-1, columns)
        sha.update(table.sum(0, dtype="<u8").tobytes() + table.sum(1, dtype="<u8").tobytes())
    sha.update(bytes(data[whole * 8 :]) + str(len(data)).encode())
    return sha.hexdigest()[:32]


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
