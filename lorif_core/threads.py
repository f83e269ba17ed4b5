"""Several small products at once: a worker for each of torch's threads, each computing with one.

Products of a few thousand rows are too small to be split; as many of them side by side keep every core busy.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """A pool of `count` threads."""

    pool: ThreadPoolExecutor
    count: int

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
        """Results in the order of `items`, which are drawn as they are needed: at most `count` + 1 are in work.

        Close it, or exhaust it. What an item or a worker raises is raised here.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self.pool.submit(function, item))
                if len(waiting) > self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Single:
    """torch's number of threads, a process-wide setting: one while any caller has workers, then what it was before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers = self._before = 0

    def begin(self) -> int:
        """One from here on; returns what it is without workers."""
        with self._lock:
            if not self._callers:
                self._before = torch.get_num_threads()
                torch.set_num_threads(1)  # threads started from here on take it over
            self._callers += 1
            return self._before

    def end(self) -> None:
        """As before, when the last caller ends."""
        with self._lock:
            self._callers -= 1
            if not self._callers:
                torch.set_num_threads(self._before)


_single = _Single()


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """Workers for the block, a single one where the device is no CPU; torch's number of threads is one until it ends.

    Callers may overlap, in threads of their own.
    """
    threads = _single.begin()
    try:
        count = threads if device.type == "cpu" else 1
        with ThreadPoolExecutor(count, "lorif-worker") as pool:
            yield Workers(pool, count)
    finally:
        _single.end()
