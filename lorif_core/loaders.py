"""What the order of a loader can be trusted for (it is the index of the training rows), and samples of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized

from torch.utils.data import Sampler

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


def examples_of(loader: Iterable[Batch]) -> int | None:
    """How many examples a loader will give, where it says."""
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
