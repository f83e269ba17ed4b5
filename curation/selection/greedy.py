"""Greedy maximisation of facility location: lazy, which is exact, and sampled, for large numbers of rows.

Axes: N candidates, m rows to be covered, D numbers of a vector, b candidates whose gains are computed together.

    f(S) = coverage mean over covered j of max over i in S of (1 + cos(i, j)) / 2  +  sum over i in S of bonus_i

The gain of a candidate only falls while rows are chosen, so the last one known bounds it from above: only those with the
highest bounds are computed anew, and the rows are those of a greedy that computes all of them every time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

import numpy as np

TOGETHER = 16
"""Candidates whose gains are computed at once: b."""
BLOCK_NUMBERS = 2**22
"""Similarities computed at once at the start, or of candidates that are sampled: 16 MB."""
TABLE_NUMBERS = 2**26
"""Similarities that are kept, where all of them fit: 256 MB."""
MISSED = 0.001
"""Chance that none of the candidates sampled for a step is among those that a best selection still lacks."""


def similarities(candidates: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """(1 + cosine) / 2 of unit vectors, [b, m] float32, in [0, 1]."""
    found: np.ndarray = candidates @ covered.T  # [b, D] @ [D, m] -> [b, m]
    found += 1
    found /= 2
    return np.clip(found, 0, 1, out=found)


def greedy(
    candidates: np.ndarray, covered: np.ndarray, coverage: float, bonus: np.ndarray
) -> Iterator[tuple[int, float]]:
    """(candidate, its gain in f when it is chosen) of every candidate, best first; ties to the first.

    Args:
        candidates: unit vectors, float32 [N, D].
        covered: unit vectors, float32 [m, D].
        coverage: weight of the first term, >= 0.
        bonus: of each candidate, float64 [N].
    """
    count, m = len(candidates), len(covered)
    table = np.empty((count, m), dtype=np.float32) if count * m <= TABLE_NUMBERS else None
    reached = np.zeros(m, dtype=np.float32)

    def similar(rows: list[int]) -> np.ndarray:
        return similarities(candidates[rows], covered) if table is None else table[rows]

    def gains(found: np.ndarray, of: np.ndarray) -> np.ndarray:
        total: np.ndarray = np.maximum(found - reached, 0).sum(1, dtype=np.float64) * (coverage / m)  # [b, m] -> [b]
        total += of
        return total

    first = np.empty(count)
    step = max(1, BLOCK_NUMBERS // m)
    for start in range(0, count, step):
        found = similarities(candidates[start : start + step], covered)
        first[start : start + step] = gains(found, bonus[start : start + step])
        if table is not None:
            table[start : start + step] = found
    heap = [(-gain, row, 0) for row, gain in enumerate(first.tolist())]
    heapq.heapify(heap)
    chosen = 0
    while heap:
        if heap[0][2] == chosen:
            gain, row, _ = heapq.heappop(heap)
            np.maximum(reached, similar([row])[0], out=reached)
            chosen += 1
            yield row, -gain
            continue
        stale: list[int] = []
        while heap and len(stale) < TOGETHER and heap[0][2] < chosen:
            stale.append(heapq.heappop(heap)[1])
        for row, new in zip(stale, gains(similar(stale), bonus[stale]).tolist(), strict=True):
            heapq.heappush(heap, (-new, row, chosen))


def sampled_greedy(
    candidates: np.ndarray,
    covered: np.ndarray,
    coverage: float,
    bonus: np.ndarray,
    count: int,
    seed: np.random.Generator,
) -> Iterator[tuple[int, float]]:
    """As `greedy`, but each step takes the best of candidates sampled anew: at least 1 - 1/e - `MISSED` of the best f, in the mean.

    Stochastic greedy (1409.7938): N log(1 / `MISSED`) gains in all; lazy greedy computes many times as many where the rows are
    about equally good.

    Args:
        candidates: as of `greedy`.
        covered: likewise.
        coverage: likewise.
        bonus: likewise.
        count: how many of the candidates will be asked for, about.
        seed: draws the samples.
    """
    left, size = np.arange(len(candidates)), math.ceil(len(candidates) / count * math.log(1 / MISSED))
    reached = np.full(len(covered), -1, dtype=np.float32)  # cosines: (1 + -1) / 2 = 0
    step = max(1, BLOCK_NUMBERS // len(covered))
    while len(left):
        drawn = seed.choice(len(left), min(size, len(left)), replace=False, shuffle=False)
        best, gain, found = 0, -math.inf, reached
        for start in range(0, len(drawn), step):
            rows = left[drawn[start : start + step]]
            cosines = candidates[rows] @ covered.T  # [b, D] @ [D, m] -> [b, m]
            more = cosines - reached
            np.maximum(more, 0, out=more)
            gains = more.sum(1) * (coverage / 2 / len(covered)) + bonus[rows]
            first = int(gains.argmax())
            if gains[first] > gain:
                best, gain, found = start + first, float(gains[first]), cosines[first]
        row = int(left[drawn[best]])
        np.maximum(reached, found, out=reached)
        left[drawn[best]] = left[-1]
        left = left[:-1]
        yield row, gain


def objective(chosen: np.ndarray, covered: np.ndarray, coverage: float, bonus: np.ndarray) -> float:
    """F of the chosen candidates.

    Args:
        chosen: their unit vectors, [n, D].
        covered: as of `greedy`.
        coverage: likewise.
        bonus: of those chosen, [n].
    """
    reached = np.zeros(len(covered), dtype=np.float32)
    step = max(1, BLOCK_NUMBERS // len(covered))
    for start in range(0, len(chosen), step):
        np.maximum(reached, similarities(chosen[start : start + step], covered).max(0), out=reached)
    return float(coverage * reached.mean(dtype=np.float64) + bonus.sum())
