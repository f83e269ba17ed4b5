"""What the order of a loader can be trusted for (it is the index of the training rows), and samples of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from lorif_core.objectives import Batch, batch_rows, join_rows, row_form, select_rows


def check_loader(loader: Iterable[Batch]) -> None:
    """Nothing, for a loader that gives the same rows in the same order every time it is read.

    Raises:
        ValueError: the loader shuffles, so rows of scores could not be told apart, or can be read only once.
    """
    if isinstance(loader, Iterator):
        raise ValueError(
            f"the loader is read more than once, but a {type(loader).__name__} can be read only once: "
            "pass a DataLoader, or a list of batches"
        )
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    for one in (sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
        if isinstance(one, Sampler) and ("Random" in type(one).__name__ or getattr(one, "shuffle", False)):
            raise ValueError(
                f"the loader's order is the index of its rows, but it shuffles ({type(one).__name__}): "
                "pass a DataLoader with shuffle=False over the same dataset"
            )


def counted(loader: Iterable[Batch]) -> int | None:
    """How many examples a loader gives, where its sampler says so for certain."""
    batches = _batches_of(loader)
    if type(batches) is not BatchSampler or not isinstance(batches.sampler, Sized):
        return None
    rows = len(batches.sampler)
    return rows - rows % batches.batch_size if batches.drop_last else rows


def examples_of(loader: Iterable[Batch]) -> int | None:
    """How many examples a loader will give, where it says, if only by the length of its data set."""
    if (examples := counted(loader)) is not None:
        return examples
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None


def sampled(loader: Iterable[Batch], step: int) -> Iterator[Batch]:
    """Every step-th example, gathered into batches of at most the loader's own size.

    Examples of different shapes (texts padded batch by batch) are never joined.
    """
    waiting: list[Batch] = []
    seen = count = most = 0
    for batch in loader:
        size = batch_rows(batch)
        chosen = list(range(-seen % step, size, step))
        seen, most = seen + size, max(most, size)
        if not chosen:
            continue
        part = batch if len(chosen) == size else select_rows(batch, chosen)
        if waiting and (count + len(chosen) > most or row_form(part) != row_form(waiting[0])):
            yield join_rows(waiting)
            waiting, count = [], 0
        waiting.append(part)
        count += len(chosen)
    if waiting:
        yield join_rows(waiting)


def batch_sizes(loader: Iterable[Batch]) -> list[int]:
    """Rows of every batch of a loader that `check_loader` accepts, from its sampler; it is read only where it has none."""
    batches = _batches_of(loader)
    return [batch_rows(batch) for batch in loader] if batches is None else [len(rows) for rows in batches]


def stretch(loader: Iterable[Batch], first: int, last: int) -> Iterable[Batch]:
    """The loader's batches first, first + 1, ..., last - 1, the same as among all of them.

    Of a DataLoader no other rows are read; other loaders (a subclass may yield anything) are read from their beginning.
    """
    batches = _batches_of(loader)
    if batches is None or not isinstance(loader, DataLoader):
        return _Stretch(loader, first, last)
    return DataLoader(
        loader.dataset,
        batch_sampler=_Stretch(batches, first, last),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


def share(loader: Iterable[Batch], worker: int, workers: int) -> Iterable[Batch]:
    """The loader's batches of one of several workers: consecutive ones, as many for each as there are, give or take one."""
    count = len(batch_sizes(loader))
    return stretch(loader, count * worker // workers, count * (worker + 1) // workers)


def _batches_of(loader: Iterable[Batch]) -> Iterable[list[int]] | None:
    """Rows of the data set in each batch; None where a loader does not take its rows by number."""
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return None
    batches: Iterable[list[int]] | None = loader.batch_sampler
    return batches


class _Stretch:
    """Items first, first + 1, ..., last - 1 of what can be iterated over more than once."""

    def __init__(self, items: Iterable[Any], first: int, last: int) -> None:
        self.items, self.first, self.last = items, first, last

    def __iter__(self) -> Iterator[Any]:
        return islice(self.items, self.first, self.last)

    def __len__(self) -> int:
        return self.last - self.first
