"""Rows of tokens as bags: how alike two rows are in the ids they hold, before anything was learnt of them.

Axes: N rows, T places for tokens, V different ids, C columns kept, K classes.

A bag is the row's counts of its ids, divided by their Euclidean length. No training ever touched it, so unlike everything a
model learnt it cannot have memorised the row's label.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Columns of the ids that most rows hold are multiplied as a dense matrix, the others as a sparse one.
DENSE_COLUMNS = 512
# Columns of an inverse that are made at a time.
INVERSE_COLUMNS = 512


@dataclass(frozen=True)
class TokenBags:
    """The bags of N rows in sparse form.

    Attributes:
        rows: int64 [nonzeros], ascending.
        columns: int64 [nonzeros]: places of the ids, the one most rows hold first.
        values: float64 [nonzeros], counts over the length of the row's.
        length: N.
        width: V, ids that occur.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    length: int
    width: int

    def __len__(self) -> int:
        """N."""
        return self.length

    @classmethod
    def from_ids(cls, ids: np.ndarray) -> TokenBags:
        """Bags of ``ids`` int [N, T]; a negative one is padding. A row without any is empty."""
        present = ids >= 0
        width = int(ids.max(initial=0)) + 1
        places = np.nonzero(present)[0].astype(np.int64) * width + ids[present]
        places, counts = np.unique(places, return_counts=True)
        rows, tokens = places // width, places % width
        lengths = np.sqrt(np.bincount(rows, np.square(counts, dtype=np.float64), minlength=len(ids)))
        holders = np.bincount(tokens, minlength=width)
        rank = np.empty(width, dtype=np.int64)
        rank[np.argsort(-holders, kind="stable")] = np.arange(width)
        return cls(rows, rank[tokens], counts / lengths[rows], len(ids), int((holders > 0).sum()))

    def dense(self, block: slice, columns: int) -> Tensor:
        """The first C ``columns`` of the rows in ``block``, float64 [B, C]."""
        first, last = np.searchsorted(self.rows, [block.start, block.stop])
        kept = np.flatnonzero(self.columns[first:last] < columns) + first
        result = torch.zeros(block.stop - block.start, columns, dtype=torch.float64)
        result[self.rows[kept] - block.start, self.columns[kept]] = torch.from_numpy(self.values[kept])
        return result

    def gram(self) -> Tensor:
        """Dot products of all pairs of rows, float64 [N, N] summed in float32, over all V ids."""
        dense = self.dense(slice(0, self.length), min(DENSE_COLUMNS, self.width)).float()
        result = dense @ dense.T  # [N, C] @ [C, N]
        rare = self.columns >= DENSE_COLUMNS
        if rare.any():
            places = torch.from_numpy(np.stack([self.rows[rare], self.columns[rare]]))
            values = torch.from_numpy(self.values[rare]).float()
            sparse = torch.sparse_coo_tensor(places, values, (self.length, self.width), check_invariants=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that torch's compressed rows may still change their interface
                result += (sparse.coalesce().to_sparse_csr() @ sparse.T.coalesce().to_sparse_csr()).to_dense()
        return result.double()


def bag_loo(bags: TokenBags, targets: Tensor, damping: float) -> np.ndarray | None:
    """Leave-one-out ridge predictions, float64 [N, K], from all ids: the N x N form of ``kernel_loo``'s linear one.

    With G the dot products of the centred bags over the mean of their diagonal, plus 1 for the column of ones, and
    B = (G + lam I)^-1, lam = damping * mean diagonal of G: f_-i = y_i - (B Y)_i / B_ii. O(N^2) memory, O(N^3) time.

    Args:
        bags: of N rows.
        targets: float64 [N, K], one-hot labels.
        damping: positive.

    Returns:
        The predictions; None where all bags are equal.
    """
    gram = bags.gram()
    mean = gram.mean(dim=0)
    gram += mean.mean() - mean[:, None] - mean[None, :]
    spread = float(gram.diagonal().mean())
    if spread <= 1e-6:  # nothing but rounding is left of float32 sums of numbers up to 1
        return None
    gram = gram / spread + 1.0
    gram.diagonal().add_(damping * gram.diagonal().mean())
    factor = torch.linalg.cholesky(gram)
    weights = torch.cholesky_solve(targets, factor)  # [N, K]
    predictions: np.ndarray = (targets - weights / inverse_diagonal(factor)[:, None]).numpy()
    return predictions


def inverse_diagonal(factor: Tensor) -> Tensor:
    """Diagonal of (L L^T)^-1, float64 [N], of a lower triangular L [N, N]: the squared columns of L^-1, some at a time."""
    size = len(factor)
    diagonal = torch.empty(size, dtype=factor.dtype)
    for start in range(0, size, INVERSE_COLUMNS):
        stop = min(start + INVERSE_COLUMNS, size)
        unit = torch.zeros(size - start, stop - start, dtype=factor.dtype)
        unit.diagonal().fill_(1.0)
        # Columns of L^-1 are zero above the diagonal, so the rows before ``start`` need not be solved for.
        columns = torch.linalg.solve_triangular(factor[start:, start:], unit, upper=False)
        diagonal[start:stop] = columns.square().sum(dim=0)
    return diagonal
