"""What is summed over all rows of a layer, shard by shard, several layers in one pass over the files.

Axes: N training examples, n rows of a block, d1 / d2 projected sides, D = d1 d2, c factor rank, p1 = d1 (d1 + 1) / 2 pairs of
a side's numbers (p2 likewise), k directions sought.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Protocol

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.manifest import LayerEntry
from lorif_core.store import FactorStore, shard_rows
from lorif_core.threads import Workers
from lorif_core.windows import Window, windows

log = logging.getLogger(__name__)


class Sum(Protocol):
    """One layer's sum, over as many passes as it needs."""

    layer: LayerEntry
    device: torch.device

    @property
    def bytes(self) -> int:
        """Held from the first row to the last."""

    @property
    def passes(self) -> int:
        """Over the shards."""

    @property
    def trace(self) -> float:
        """The sum of squared gradient norms: the trace of G^T G."""

    def begin(self) -> None:
        """Take the memory."""

    def add(self, block: Block) -> None:
        """Add some rows."""

    def end_pass(self) -> bool:
        """Whether it is complete, now that every row was added once more."""


class Trace:
    """The sum of squared gradient norms, trace(G^T G), in float64."""

    passes = 1
    bytes = 8

    def __init__(self, layer: LayerEntry, device: torch.device) -> None:
        """Nothing is summed yet."""
        self.layer, self.device, self.trace = layer, device, 0.0

    def begin(self) -> None:
        """There is nothing to take."""

    def add(self, block: Block) -> None:
        """Add some rows."""
        self.trace += float(block.squared_norms().sum())

    def end_pass(self) -> bool:
        """One pass is all."""
        return True


class Gram:
    """G^T G [D, D] in float64, each block's part in float32, and its trace; one pass.

    Rows of one pair of factors need no D^2: G^T G is the sum of (u u^T) x (v v^T), and both sides are symmetric, so that
    the products of p1 and p2 numbers, less than a third of D^2, say it all.
    """

    passes = 1

    def __init__(self, layer: LayerEntry, device: torch.device) -> None:
        """Nothing is summed yet."""
        self.layer, self.device = layer, device
        d1, d2 = layer.d1, layer.d2
        self._shape = (d1 * (d1 + 1) // 2, d2 * (d2 + 1) // 2) if layer.rank == 1 else (layer.size, layer.size)
        self._sum = torch.zeros(0, 0, dtype=torch.float64, device=device)

    @staticmethod
    def needs(layer: LayerEntry) -> int:
        """Bytes, with one block's float32 part and what the eigenvectors are found in."""
        return 32 * layer.size**2

    @property
    def bytes(self) -> int:
        """Held while rows are added."""
        return 12 * self._shape[0] * self._shape[1]  # in float64, and one block's part in float32

    @property
    def trace(self) -> float:
        """The sum of squared gradient norms."""
        if self.layer.rank != 1:
            return float(self._sum.trace())
        rows, columns = (_places(d, self.device).diagonal() for d in (self.layer.d1, self.layer.d2))
        return float(self._sum[rows][:, columns].sum())

    def begin(self) -> None:
        """Take the memory."""
        self._sum = self._sum.new_zeros(self._shape)

    def add(self, block: Block) -> None:
        """Add some rows."""
        if block.right is None or self.layer.rank > 1:
            columns = block.columns(self.device)
            self._sum += columns @ columns.T  # [D, n] @ [n, D] -> [D, D]
        else:
            left, right = (side[:, :, 0].to(self.device).float().T.contiguous() for side in (block.left, block.right))
            self._sum += _products(left) @ _products(right).T  # [p1, n] @ [n, p2] -> [p1, p2]

    def end_pass(self) -> bool:
        """One pass is all."""
        return True

    def matrix(self) -> Tensor:
        """G^T G [D, D]."""
        if self.layer.rank != 1:
            return self._sum
        d1, d2 = self.layer.d1, self.layer.d2
        whole = self._sum[_places(d1, self.device).flatten()][:, _places(d2, self.device).flatten()]  # [d1 d1', d2 d2']
        return whole.view(d1, d1, d2, d2).transpose(1, 2).reshape(self.layer.size, self.layer.size)


class RandomizedSVD:
    """The k largest singular directions of G: a product G^T (G B), power iterations, and a last pass over G B.

    A row costs 2 D k to project and as much to lift, from factors as well as dense, so blocks are made dense in cache.
    """

    def __init__(self, layer: LayerEntry, count: int, iterations: int, seed: int, device: torch.device) -> None:
        """Random directions of the seed; `iterations` power iterations."""
        self.layer, self.device, self.trace, self.passes = layer, device, 0.0, iterations + 2
        self._left = self.passes
        self._count, self._seed = count, seed
        self._basis = self._product = self._small = torch.zeros(0, 0, device=device)
        self.values = torch.zeros(count, device=device)

    @staticmethod
    def needs(layer: LayerEntry, count: int) -> int:
        """Bytes: the directions, their product, and both while they are made orthonormal."""
        return 16 * layer.size * count

    @property
    def bytes(self) -> int:
        """Held from the first row to the last."""
        return self.needs(self.layer, self._count)

    @property
    def vectors(self) -> Tensor:
        """The directions [D, k], strongest first once complete."""
        return self._basis

    def begin(self) -> None:
        """Take the memory; random directions."""
        generator = torch.Generator().manual_seed(self._seed)
        self._basis = torch.randn(self.layer.size, self._count, generator=generator).to(self.device)
        self._product = torch.zeros_like(self._basis)
        self._small = self._basis.new_zeros(self._count, self._count, dtype=torch.float64)

    def add(self, block: Block) -> None:
        """Add some rows."""
        if self._left == self.passes:
            self.trace += float(block.squared_norms().sum())
        rows = block.dense(self._basis.device)
        inside = rows @ self._basis  # [n, D] @ [D, k] -> [n, k]
        if self._left > 1:
            self._product.addmm_(rows.T, inside)  # [D, n] @ [n, k] -> [D, k]
        else:
            double = inside.double()
            self._small.addmm_(double.T, double)  # [k, n] @ [n, k] -> [k, k]

    def end_pass(self) -> bool:
        """Orthonormal directions for the next pass; after the last one, singular ones."""
        self._left -= 1
        if self._left:
            self._basis = torch.linalg.qr(self._product)[0]
            self._product.zero_()
            return False
        values, weights = torch.linalg.eigh((self._small + self._small.T) / 2)
        self._basis, self.values = self._basis @ weights.flip(1).float(), values.flip(0).clamp_min(0).float()
        return True


def _products(side: Tensor) -> Tensor:
    """Products [p, n] of every pair of rows of [d, n], in the order of `triu_indices`."""
    d, n = side.shape
    found = side.new_empty(d * (d + 1) // 2, n)
    start = 0
    for i in range(d):
        torch.mul(side[i], side[i:], out=found[start : start + d - i])
        start += d - i
    return found


def _places(d: int, device: torch.device) -> Tensor:
    """Where each of the products of d numbers [d, d] lies in the order of `triu_indices`."""
    first, second = torch.triu_indices(d, d, device=device)
    found = torch.zeros(d, d, dtype=torch.int64, device=device)
    found[first, second] = found[second, first] = torch.arange(len(first), device=device)
    return found


def groups(sums: Sequence[Sum], limit: int) -> list[list[Sum]]:
    """Sums that share their passes: as many as `limit` bytes hold, those of as many passes together."""
    found: list[list[Sum]] = []
    free = 0
    for one in sorted(sums, key=lambda one: one.passes):
        if not found or one.bytes > free or one.passes != found[-1][0].passes:
            found.append([])
            free = limit
        found[-1].append(one)
        free -= one.bytes
    return found


def run(
    store: FactorStore,
    group: Sequence[Sum],
    rows: Callable[[LayerEntry], int],
    pool: Workers,
    progress: Callable[[int], None],
) -> None:
    """Complete the sums of a group: passes over the shards, layers side by side.

    Args:
        store: the index.
        group: sums of as many passes; in memory at once.
        rows: of a block of a layer.
        pool: works on different layers at once; the order of a layer's rows, and so its sum, is always the same.
        progress: told the rows of the current pass.
    """
    bits = store.manifest.bits
    by_size = sorted(group, key=lambda one: -one.layer.size)  # the longest first: the cores end together

    for one in group:
        one.begin()
    remaining = by_size
    while remaining:
        with closing(windows(store, shard_rows(store.bytes_per_example))) as parts:
            for window in parts:

                def add(one: Sum, window: Window = window) -> None:
                    for block in window.blocks(one.layer, rows(one.layer), bits):
                        one.add(block)

                for _ in pool.map(add, remaining):
                    pass
                progress(window.stop)
        complete = list(pool.map(lambda one: one.end_pass(), remaining))
        remaining = [one for one, done in zip(remaining, complete, strict=True) if not done]
