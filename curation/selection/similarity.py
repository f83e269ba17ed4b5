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


def neighbour_distance(vectors: np.ndarray, k: int, others: np.ndarray | None = None) -> np.ndarray:
    """The mean Euclidean distance of each vector to its k nearest neighbours, itself left out; fewer where there are fewer.

    Args:
        vectors: [N, D].
        k: neighbours.
        others: positions of the rows that can be neighbours, int [M]; all where left out.

    Returns:
        float64 [N].
    """
    others = np.arange(len(vectors)) if others is None else others
    k = min(k, len(others) - 1)
    if k < 1:
        return np.zeros(len(vectors))
    x = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)  # near the origin less cancels
    squares, near = (x**2).sum(1), x[others]
    place = np.full(len(x), -1)
    place[others] = np.arange(len(others))
    found = np.zeros(len(x))
    rows = max(1, BLOCK_NUMBERS // 2 // len(others))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        table = squares[start : start + rows, None] - 2 * part @ near.T + squares[others]  # [n, D] @ [D, M] -> [n, M]
        own = place[start : start + rows]
        table[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
        found[start : start + rows] = np.sqrt(np.partition(table, k - 1, axis=1)[:, :k].clip(0)).mean(1)
    return found
