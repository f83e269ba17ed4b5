"""`fit` under `torch.distributed`: the ranks of the process group are the workers of `lorif_core.parallel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from lorif_core.errors import StoreError
from lorif_core.index import Build
from lorif_core.parallel import build_part, join, make_head

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a rank waits for the others' work; one that died is noticed at once."""


class RankLost(StoreError):
    """The process of another rank has died: nothing is wrong with the index, the ranks can be started again."""


def ranks() -> int:
    """How many processes share the work: those of the initialised process group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def fit_on_all_ranks(build: Build, layers: Callable[[Path, int, int], None], finish: Callable[[Path], None]) -> None:
    """Build an index, every rank of the default group its part of the rows and its layers of the curvature.

    Args:
        build: the same on every rank.
        layers: called with the index's folder when it is whole, the rank and how many there are: fits the rank's layers.
        finish: called with the folder then, on rank 0 first; what it writes there the others find.

    Raises:
        StoreError: another rank failed or was lost, or as `make_head`, `build_part` and `join`. No rank is left waiting.
        ValueError: as those; the ranks were given different folders.
    """
    rank, workers = dist.get_rank(), dist.get_world_size()

    def head() -> None:
        if rank == 0:
            make_head(build, workers)

    def whole() -> None:
        if rank == 0:
            join(build.path, build.ids)

    def finished() -> None:
        if rank == 0:
            finish(build.path)

    def open_there() -> None:
        if rank != 0:
            finish(build.path)

    with _own_group(None) as group:  # with the default time-out: a rank that never calls fit is not waited for
        folders = _gathered(group, str(build.path.resolve()))
    if len(set(folders)) > 1:
        raise ValueError(f"expected the same path on every rank, got {folders}: one index is built by all of them")
    with _own_group(PATIENCE) as group:
        part, share = partial(build_part, build, rank, workers), partial(layers, build.path, rank, workers)
        for step in (head, part, whole, share, finished, open_there):
            _on_all(group, step)


def on_all_ranks(work: Callable[[], T]) -> list[T]:
    """What the work of each rank of the default group gives, in their order, on every rank.

    Raises:
        StoreError: another rank failed, with its message, or was lost.
    """
    with _own_group(None) as group:  # as in `fit_on_all_ranks`
        _gathered(group, None)
    with _own_group(PATIENCE) as group:
        return _on_all(group, work)


@contextmanager
def _own_group(timeout: timedelta | None) -> Iterator[Any]:
    """A process group of all ranks for messages between CPUs, whatever the default group is for."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def _on_all(group: Any, step: Callable[[], T]) -> list[T]:
    """Run a step on every rank and wait for all, what it gave on each; one that fails fails everywhere.

    Raises:
        StoreError: another rank failed, with its message, or was lost.
    """
    problem: Exception | None = None
    result: T | None = None
    try:
        result = step()
    except Exception as error:  # noqa: BLE001  whatever went wrong, the other ranks wait to hear of it
        problem = error
    said = _gathered(group, (None if problem is None else f"{type(problem).__name__}: {problem}", result), problem)
    if problem is not None:
        raise problem
    failed = [f"rank {rank} failed: {text}" for rank, (text, _) in enumerate(said) if text is not None]
    if failed:
        raise StoreError("; ".join(failed))
    return [value for _, value in said]


def _gathered(group: Any, value: Any, cause: Exception | None = None) -> list[Any]:
    """Every rank's value, once all have come here."""
    values: list[Any] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(values, value, group=group)
    except RuntimeError as lost:
        raise RankLost(
            f"another rank was lost ({str(lost).splitlines()[0]}): run it again with {len(values)} ranks, "
            "each continues where it was"
        ) from cause or lost
    return values
