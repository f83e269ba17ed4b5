"""Texts of like length run together, so that little of the work is done on padding.

Axes: B rows of a batch, T tokens, W rows of a window.

A window of the loader's batches is sorted by length, cut into batches of the loader's size, and each loses the columns that
are padding in all of its rows. What is computed of them is put back into the loader's order: rows, shards and digests are
as without, the numbers equal up to rounding. It works on batches with an `attention_mask` [B, T] that is zero on padding at
the right end (at the left end positions would change: those are run as they are).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorif_core.objectives import Batch, batch_rows, join_rows, like, row_form, select_rows

MASK = "attention_mask"


@dataclass(frozen=True)
class Window:
    """Consecutive rows of the loader, and the batches they are run in."""

    batch: Batch
    """The rows in the loader's order."""
    pieces: list[Batch]
    """The same rows by length, shorn of padding."""
    order: Tensor | None
    """int64 [W]: for each row of the pieces, one after the other, its row in `batch`; None where they are in its order."""

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor [n, ...] a piece as one [W, ...], rows in the loader's order."""
        rows = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return rows if self.order is None else torch.empty_like(rows).index_copy_(0, self.order.to(rows.device), rows)


def windows(loader: Iterable[Batch], batches: int) -> Iterator[Window]:
    """The loader's rows, `batches` of its batches at a time where they have masks of one shape, one otherwise.

    Args:
        loader: batches of rows.
        batches: how many are sorted together; 1 = every batch runs as it comes, less the padding all of its rows share.
    """
    waiting: list[Batch] = []
    for batch in loader:
        if waiting and row_form(batch) != row_form(waiting[0]):
            yield _window(waiting)
            waiting = []
        waiting.append(batch)
        if len(waiting) == batches or mask_of(batch) is None:
            yield _window(waiting)
            waiting = []
    if waiting:
        yield _window(waiting)


def mask_of(batch: Batch) -> Tensor | None:
    """The mask [B, T] of a dict, or of (a dict, targets); None where there is none."""
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def shorn(batch: Batch, length: int) -> Batch:
    """The batch with every tensor [B, T] or [B, T, n] (embedded tokens) cut to its first `length` columns, T as the mask's."""
    mask = mask_of(batch)
    return batch if mask is None or length == mask.shape[1] else _cut(batch, mask.shape, length)


def _window(waiting: list[Batch]) -> Window:
    batch = waiting[0] if len(waiting) == 1 else join_rows(waiting)
    mask = mask_of(batch)
    if mask is None:
        return Window(batch, [batch], None)
    lengths = _lengths(mask)
    order = lengths.argsort(stable=True)
    sizes = [batch_rows(part) for part in waiting]
    pieces = [shorn(select_rows(batch, rows.tolist()), int(lengths[rows].max())) for rows in order.split(sizes)]
    return Window(batch, pieces, order)


def _lengths(mask: Tensor) -> Tensor:
    """Columns up to the last one that is not padding [B]; at least one."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return ((mask != 0) * columns).amax(1).clamp_min(1).cpu()


def _cut(value: Any, shape: torch.Size, length: int) -> Any:
    if isinstance(value, Tensor):
        return value[:, :length] if value.shape[:2] == shape and value.ndim <= 3 else value
    if isinstance(value, Mapping):
        return {key: _cut(part, shape, length) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return like(value, [_cut(part, shape, length) for part in value])
    return value
