"""Drawing rows without replacement.

Axes: N rows, n drawn.
"""

from __future__ import annotations

import numpy as np


def weighted_order(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """All N rows in a random order, int64: each next one drawn from those left in proportion to its weight (> 0)."""
    keys = np.log(weights) + generator.gumbel(size=len(weights))
    return np.argsort(-keys, kind="stable")


def inclusion(weights: np.ndarray, count: int) -> np.ndarray:
    """Probabilities min(1, c w_i), float64 [N], that add up to `count` <= N: of each row to be drawn."""
    order = np.argsort(-weights, kind="stable")
    sorted_weights = weights[order].astype(np.float64)
    tails = np.cumsum(sorted_weights[::-1])[::-1]  # of row i and all with less
    certain = np.arange(len(weights))
    whole = sorted_weights * (count - certain) >= tails  # still certain with `i` certain ones before
    sure = min(int(whole.argmin()) if not whole.all() else len(whole), count)
    found = np.ones(len(weights))
    if sure < len(weights):
        found[order[sure:]] = (count - sure) * sorted_weights[sure:] / tails[sure]
    return found.clip(0, 1)


def systematic(probabilities: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` different rows, in pool order, each drawn with its probability; these add up to `count`."""
    order = generator.permutation(len(probabilities))
    ends = np.cumsum(probabilities[order])
    ends *= count / ends[-1]  # nothing is lost to rounding at the end
    points = generator.random() + np.arange(count)
    return np.sort(order[np.searchsorted(ends, points.clip(max=np.nextafter(count, 0)), side="right")])
