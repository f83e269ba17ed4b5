"""Is a file what was written? A fast sum for every first read, sha256 where every byte must be vouched for.

`word_sum` adds up the 8-byte words of each MiB, seen as a table, by rows and by columns, and hashes the sums: any one changed
byte changes it, and so do two words or pages in each other's place. It costs a fraction of reading the file, where sha256
takes about as long as a query. It is no protection against somebody who forges a file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from lorif_core.errors import StoreError
from lorif_core.mapping import MappedFile

TABLE = (256, 512)
"""8-byte words of a chunk: 1 MiB, a page a row."""

_checked: set[tuple[str, str, int, int, int]] = set()
"""Files this process has found whole: path, sha256, and what the file system says of them."""


def word_sum(data: bytes | memoryview) -> str:
    """The digest of a file's content described above, 32 hexadecimal digits."""
    content = np.frombuffer(data, dtype=np.uint8)
    whole = len(content) // 8
    words = content[: 8 * whole].view("<u8")
    size = TABLE[0] * TABLE[1]
    sha = hashlib.sha256()
    for start in range(0, whole, size):  # a chunk stays in cache for its second sum
        chunk = words[start : start + size]
        columns = TABLE[1] if len(chunk) == size else 1
        table = chunk.reshape(-1, columns)
        sha.update(table.sum(0, dtype="<u8").tobytes() + table.sum(1, dtype="<u8").tobytes())
    sha.update(content[8 * whole :].tobytes() + str(len(content)).encode())
    return sha.hexdigest()[:32]


def open_whole(path: Path, sha256: str, words: str, trust: bool = False) -> MappedFile:
    """Open a file that is whole: its bytes are read the first time this process asks, and again when the file changed.

    Args:
        path: of the file.
        sha256: of its bytes.
        words: its `word_sum`; empty where an older release wrote it, and sha256 has to do.
        trust: do not look.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        file = MappedFile(path)
    except FileNotFoundError:
        raise StoreError(missing(path)) from None
    key = (str(path.absolute()), sha256, *file.identity)
    if not trust and key not in _checked:
        data = file.content().numpy().data
        if (word_sum(data) != words) if words else (hashlib.sha256(data).hexdigest() != sha256):
            raise StoreError(
                f"{path} is damaged: its bytes do not match the manifest's; restore it or rebuild the index"
            )
        _checked.add(key)
    return file


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
    """Let `open_whole` read every file again."""
    _checked.clear()


def missing(path: Path) -> str:
    """What to say where a listed file is not there."""
    return (
        f"{path} is missing: if rows were purged or shards compacted since this index was opened, open it again; "
        "else restore the file or rebuild the index"
    )
