"""Projections of one-hot inputs (token ids), kept as one signed column an id instead of a [vocabulary, d] matrix.

Axes: B examples, T positions, V ids, d1 columns, d2 projected output side.

An embedding's X is one-hot, so X^T dY is a scatter of the rows of dY. A projection that sends every id to at most one
column keeps it one: no row of P is ever looked up, what is stored is V numbers, not V d1, and a gradient is the at most T
rows of it that are not zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Gradients [B, d1, d2] of which an example has at most T rows that are not zero: those rows and where they stand.

    `columns` int64 [B, T] are positions among the d1 = `width`, `values` [B, T, d2] the rows; what is not used is zero.
    """

    columns: Tensor
    values: Tensor
    width: int

    def spread(self, rows: Tensor) -> Tensor:
        """[B, T, n] -> [B, d1, n]: each row where it stands, zeros elsewhere."""
        first = torch.arange(len(rows), device=rows.device).unsqueeze(1) * self.width  # [B, 1]
        whole = rows.new_zeros(len(rows) * self.width, rows.shape[2])
        places = (first + self.columns).flatten()
        return whole.index_add_(0, places, rows.flatten(0, 1)).view(len(rows), self.width, -1)

    def dense(self) -> Tensor:
        """The gradients themselves."""
        return self.spread(self.values)


@dataclass(frozen=True)
class Lookup:
    """P_in [V, d1] with at most one entry a row, +1 or -1: `codes` int32 [V] = +-(column + 1), 0 where the row is empty.

    With `scales` float32 [V] the entries are these instead of ones.
    """

    codes: Tensor
    width: int
    scales: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(V, d1)."""
        return len(self.codes), self.width

    def to(self, device: torch.device) -> Lookup:
        """The same on a device."""
        return Lookup(self.codes.to(device), self.width, None if self.scales is None else self.scales.to(device))

    def rows(self, ids: Tensor, dy: Tensor) -> Rows:
        """P_in^T X^T dY of one-hot X, from ids [B, T] and dY [B, T, d2]: rows of one column are summed."""
        codes = self.codes[ids]  # [B, T]
        columns, order = (codes.abs().long() - 1).sort(1)  # -1: ids without a column, whose rows are made zero
        entries = codes.sign() if self.scales is None else codes.sign() * self.scales[ids]
        values = (dy * entries.unsqueeze(-1)).gather(1, order.unsqueeze(-1).expand_as(dy))
        changes = columns[:, 1:] != columns[:, :-1]
        place = torch.nn.functional.pad(changes.cumsum(1), (1, 0))  # [B, T], among the example's distinct columns
        return Rows(
            torch.zeros_like(columns).scatter_(1, place, columns.clamp_min(0)),
            Rows(place, values, dy.shape[1]).dense(),
            self.width,
        )


def every_id(count: int, padding: int | None) -> Lookup:
    """A column for every id, none for the padding one: no projection."""
    codes = torch.arange(1, count + 1, dtype=torch.int32)
    if padding is not None:
        codes[padding] = 0
    return Lookup(codes, count)


def commonest(counts: Tensor, width: int, padding: int | None) -> Lookup:
    """A column for each of the `width` commonest ids [V] (the top eigenvectors of one-hot inputs' second moment)."""
    chosen = counts.argsort(descending=True, stable=True)[:width]
    codes = torch.zeros(len(counts), dtype=torch.int32, device=counts.device)
    codes[chosen] = torch.arange(1, width + 1, dtype=torch.int32, device=counts.device)
    if padding is not None:
        codes[padding] = 0
    return Lookup(codes, width)


def hashed(words: Tensor, width: int, padding: int | None) -> Lookup:
    """A random column with a random sign for every id, from one random word int64 [V] >= 0 each.

    Unbiased for dot products, with the variance 1 / d of random signs over all d columns.
    """
    codes = ((words >> 1) % width + 1).int() * (1 - 2 * (words & 1)).int()
    if padding is not None:
        codes[padding] = 0
    return Lookup(codes, width)
