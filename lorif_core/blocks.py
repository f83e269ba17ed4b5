"""Consecutive rows of one layer of an index, and the products everything else is made of.

Axes: n rows of the block, m of another, Q queries, d1 / d2 projected sides, c factor rank, D = d1 d2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorif_core.factors import Factors

FEW_QUERIES = 8
"""Up to here a query is contracted with both factors in turn; above, a block is made dense once for all queries."""

Stored = Factors | Tensor
"""What is kept of a layer's gradients: (left [n, d1, c], right [n, d2, c]), or the gradients [n, d1, d2] themselves."""


@dataclass(frozen=True)
class Block:
    """Rows start, start + 1, ... of one layer: U = `left` [n, d1, c] and V = `right` [n, d2, c] of G = U V^T.

    Where `right` is None, `left` is G [n, d1, d2] itself. Dtypes are those of the store.
    """

    start: int
    left: Tensor
    right: Tensor | None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.left)

    def to(self, device: torch.device, dtype: torch.dtype) -> Block:
        """The same rows elsewhere, in another precision."""
        right = None if self.right is None else self.right.to(device, dtype)
        return Block(self.start, self.left.to(device, dtype), right)

    def select(self, rows: Tensor) -> Block:
        """Some of the rows, by position in the block."""
        return Block(self.start, self.left[rows], None if self.right is None else self.right[rows])

    def dense(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Flattened gradients [n, D] (row-major vec of U V^T)."""
        block = self.to(device, dtype)
        if block.right is None:
            return block.left.flatten(1)
        return (block.left @ block.right.mT).flatten(1)  # [n, d1, c] @ [n, c, d2] -> [n, D]

    def squared_norms(self) -> Tensor:
        """|G|^2 of each row [n], float64, from the Gram matrices of the factors."""
        left = self.left.double()
        if self.right is None:
            return left.square().sum((1, 2))
        right = self.right.double()
        if left.shape[2] == 1:
            return left.square().sum((1, 2)) * right.square().sum((1, 2))
        return ((left.mT @ left) * (right.mT @ right)).sum((1, 2))  # [n, c, c]

    def inner_products(self, other: Block) -> Tensor:
        """<G, G'> [n, m] with the rows of another block: the sum over all c x c terms of (U^T U') (V^T V')."""
        if self.right is None or other.right is None:
            device, dtype = self.left.device, self.left.dtype
            return self.dense(device, dtype) @ other.dense(device, dtype).T  # [n, D] @ [D, m] -> [n, m]
        total = self.left.new_zeros(len(self), len(other))
        for i in range(self.left.shape[2]):
            for j in range(other.left.shape[2]):
                left = self.left[:, :, i] @ other.left[:, :, j].T  # [n, d1] @ [d1, m] -> [n, m]
                total.addcmul_(left, self.right[:, :, i] @ other.right[:, :, j].T)
        return total

    def add_products(self, queries: Tensor, total: Tensor) -> None:
        """Add <Q_q, G> to `total` [Q, n]; queries [Q, d1, d2], in their precision and on their device."""
        device, dtype = queries.device, queries.dtype
        if self.right is None:
            total.addmm_(queries.flatten(1), self.dense(device, dtype).T)  # [Q, D] @ [D, n] -> [Q, n]
        elif len(queries) > FEW_QUERIES:
            total.addmm_(queries.flatten(1), self.columns(device, dtype))  # [Q, D] @ [D, n] -> [Q, n]
        else:
            short, long = _rows(self.left, device, dtype), _rows(self.right, device, dtype)  # [n c, d1], [n c, d2]
            if short.shape[1] > long.shape[1]:  # the longer side first leaves the smaller product
                short, long, queries = long, short, queries.mT
            ones = queries.new_ones(short.shape[1])
            for query, scores in zip(queries, total, strict=True):
                part = (long @ query.T).mul_(short) @ ones  # [n c, j] @ [j, k] -> [n c, k], summed over k
                scores += part if part.shape == scores.shape else part.view(len(self), -1).sum(1)

    def columns(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Flattened gradients as columns [D, n]: made by products along n, where a long vector is contiguous."""
        if self.right is None:
            return self.dense(device, dtype).T
        left, right = (side.to(device, dtype).permute(1, 2, 0).contiguous() for side in (self.left, self.right))
        found = left[:, None, 0] * right[None, :, 0]  # [d1, 1, n] * [1, d2, n] -> [d1, d2, n]
        for i in range(1, left.shape[1]):
            found.addcmul_(left[:, None, i], right[None, :, i])
        return found.flatten(0, 1)


def _rows(side: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[n c, d] of a side [n, d, c]; a view where it is one column or was decoded column by column."""
    return side.to(device, dtype).mT.reshape(-1, side.shape[1])
