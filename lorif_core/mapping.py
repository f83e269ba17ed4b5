"""An open file: its bytes where the operating system keeps them, in memory shared with every reader, or as a copy.

What is mapped costs no copy. But a mapped file that somebody shrinks, or a disk that fails, ends the process that touches what
is not there. So who uses a mapping asks for its bytes first (`MADV_POPULATE_READ`), once, looks at the file's length each time
(`MappedFile.ready`), and reads a copy of what does not come: an ordinary error then says what is wrong. Where that cannot be
asked (before Linux 5.14, elsewhere), nothing is mapped, everything copied; and so is a file that cannot be mapped.

Limitations: a file that shrinks in the moment of its use still ends the process, and so does a disk that fails after the
asking, if memory was so short meanwhile that its bytes are read again. Nothing here shrinks a file: a purge writes others and
unlinks, and what is unlinked stays whole for those who have it open.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lorif_core.errors import StoreError

POPULATE_READ = 22
"""MADV_POPULATE_READ, which `mmap` does not name."""


class MappedFile:
    """A file that is open; threads may read at once. Closed when nothing refers to it, or to what is mapped of it."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            FileNotFoundError: it is not there.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        facts = os.fstat(self._descriptor)
        self.size = facts.st_size
        self.identity = facts.st_ino, facts.st_size, facts.st_mtime_ns
        """What is another once the file changes."""
        self._mapped = torch.empty(0, dtype=torch.uint8)
        self._fetched = False
        if self.size and advice():
            with suppress(OSError):  # no room for its addresses, or no file system that maps: everything is copied
                private = mmap.mmap(
                    self._descriptor, 0, access=mmap.ACCESS_COPY
                )  # for tensors, which know no read-only
                self._mapped = torch.frombuffer(private, dtype=torch.uint8)
        self._begin, self._end = self._mapped.data_ptr(), len(self._mapped)
        if self._end:
            _advise(self._mapped, mmap.MADV_SEQUENTIAL)  # the disk is read far ahead

    def read(self, start: int, stop: int, room: int = 0) -> Tensor:
        """A copy of bytes start to stop, uint8, and behind them `room` more that may be touched, whatever they hold.

        Raises:
            StoreError: the file ends before them.
        """
        buffer = torch.empty(stop - start + room, dtype=torch.uint8)[: stop - start]
        view, done = buffer.numpy().data, 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], start + done)
            if count == 0:
                where = f"{self.path} ends after {start + done} bytes, {len(view) - done} too early"
                raise StoreError(f"{where}; rebuild the index")
            done += count
        return buffer

    def content(self) -> Tensor:
        """All of it, uint8, not to be written to: mapped, or a copy.

        Raises:
            StoreError: the file has become shorter.
        """
        return self._mapped if self.fetch() else self.read(0, self.size)

    def fetch(self) -> bool:
        """Whether it is mapped and now in memory, all of it, read in the order of the disk; elsewhere the disk is only asked.

        Each page is touched, in order, too: in a virtual machine, with files fresh from the disk, the kernels, which use them
        in another order, were otherwise several times as slow.
        """
        if self._end:
            if not _advise(self._mapped, POPULATE_READ) or self.shrunk():
                return False
            self._mapped[:: mmap.PAGESIZE].sum()
            self._fetched = True
            return True
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        return False

    def ready(self) -> bool:
        """Whether what is mapped may be used: it was fetched, now if not before, and the file is as long as it was."""
        return not self.shrunk() if self._fetched else self.fetch()

    def address(self, start: int, stop: int) -> int | None:
        """Where bytes start to stop are mapped, for code that made sure that they are `ready`; None where they are not."""
        return self._begin + start if stop <= self._end else None

    def shrunk(self) -> bool:
        """Whether the file is shorter than it was: what is left of its last page is zeros."""
        return os.fstat(self._descriptor).st_size < self.size


@cache
def advice() -> int:
    """Which advice to `madvise` asks for mapped bytes; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    page = torch.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=torch.uint8)
    return POPULATE_READ if _advise(page, POPULATE_READ) else 0


def _advise(mapped: Tensor, advice: int) -> bool:
    """Whether `madvise` did what it was asked for. Python's own holds the interpreter's lock while the disk is read."""
    return _madvise()(mapped.data_ptr(), len(mapped), advice) == 0


@cache
def _madvise() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
