"""Nearest neighbours and similarities of vectors, some rows at a time.

Axes: N rows, M others, D numbers of a vector, k neighbours.
"""

from __future__ import annotations

import numpy as np

BLOCK_NUMBERS = 2**24
"""Similarities held at once: 64 MB."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32 [N, D]; rows of zeros stay."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def most_similar(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of N vectors the most similar of M others: (positions int64 [N], cosines float32 [N]); ties to the first."""
    a, b = unit(vectors), unit(others)
    positions, cosines = np.zeros(len(a), dtype=np.int64), np.zeros(len(a), dtype=np.float32)
    rows = max(1, BLOCK_NUMBERS // len(b))
    for start in range(0, len(a), rows):
        table = a[start : start + rows] @ b.T  # [n, D] @ [D, M] -> [n, M]
        positions[start : start + rows] = table.argmax(1)
        cosines[start : start + rows] = table.max(1)
    return positions, cosines


def neighbour_distance(vectors: np.ndarray, k: int) -> np.ndarray:
    """The mean Euclidean distance of each vector to its k nearest others, float64 [N]; fewer where there are fewer."""
    count, k = len(vectors), min(k, len(vectors) - 1)
    if k < 1:
        return np.zeros(count)
    x = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)  # near the origin less cancels
    squares = (x**2).sum(1)
    found = np.zeros(count)
    rows = max(1, BLOCK_NUMBERS // 2 // count)
    for start in range(0, count, rows):
        part = x[start : start + rows]
        table = squares[start : start + rows, None] - 2 * part @ x.T + squares  # [n, D] @ [D, N] -> [n, N]
        table[np.arange(len(part)), np.arange(start, start + len(part))] = np.inf
        nearest = np.partition(table, k - 1, axis=1)[:, :k]
        found[start : start + rows] = np.sqrt(nearest.clip(0)).mean(1)
    return found
