"""Projections of one-hot inputs (token ids), kept as one signed column an id instead of a [vocabulary, d] matrix.

Axes: B examples, T positions, V ids, d1 columns, d2 projected output side.

An embedding's X is one-hot, so X^T dY is a scatter of the rows of dY. A projection that sends every id to at most one
column keeps it one: no row of P is ever looked up, and what is stored is V numbers, not V d1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lookup:
    """P_in [V, d1] with at most one entry a row, +1 or -1: `codes` int32 [V] = +-(column + 1), 0 where the row is empty."""

    codes: Tensor
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(V, d1)."""
        return len(self.codes), self.width

    def to(self, device: torch.device) -> Lookup:
        """The same on a device."""
        return Lookup(self.codes.to(device), self.width)

    def dense(self) -> Tensor:
        """P_in written out, float32 [V, d1]."""
        identity = torch.eye(len(self.codes), device=self.codes.device)
        return self.scatter(torch.arange(len(self.codes), device=self.codes.device)[None], identity[None])[0].T

    def scatter(self, ids: Tensor, dy: Tensor) -> Tensor:
        """P_in^T X^T dY of one-hot X: [B, d1, d2] from ids [B, T] and dY [B, T, d2]."""
        codes = self.codes[ids]  # [B, T]
        rows = dy * codes.sign().unsqueeze(-1)  # an id without a column adds zeros to the first
        first = torch.arange(len(ids), device=ids.device).unsqueeze(1) * self.width  # [B, 1]
        columns = first + codes.abs().long().sub_(1).clamp_min_(0)  # [B, T]
        sums = dy.new_zeros(len(ids) * self.width, dy.shape[2])
        return sums.index_add_(0, columns.flatten(), rows.flatten(0, 1)).view(len(ids), self.width, -1)


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
