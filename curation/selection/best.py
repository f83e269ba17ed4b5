"""The strongest rows of each group, kept while scores stream by.

Axes: G groups, n rows of a stretch, k rows kept a group.
"""

from __future__ import annotations

import numpy as np

from curation.selection.pool import Best


class BestRows:
    """Of groups over the same rows, whose scores are added stretch by stretch."""

    def __init__(self, names: list[str], k: int, allowed: np.ndarray) -> None:
        """Keep k rows of those allowed, bool [N], for each named group; all of them where they are fewer."""
        self.names, self.k, self.allowed = names, min(k, int(allowed.sum())), allowed
        self._rows = [np.zeros(0, dtype=np.int64)] * len(names)
        self._scores = [np.zeros(0, dtype=np.float32)] * len(names)

    def add(self, groups: range, first: int, part: np.ndarray) -> None:
        """Scores [G, n] of some groups for the rows first, first + 1, ..., after those before."""
        allowed = self.allowed[first : first + part.shape[1]]
        for group, scores in zip(groups, part.astype(np.float32), strict=True):
            held = self._scores[group]
            least = held[-1] if len(held) >= self.k else -np.inf
            new = np.flatnonzero(allowed & (scores > least))  # of equals the earlier row stays
            if not len(new):
                continue
            both = np.concatenate([held, scores[new]])
            order = np.argsort(-both, kind="stable")[: self.k]
            self._rows[group] = np.concatenate([self._rows[group], new + first])[order]
            self._scores[group] = both[order]

    def take(self) -> Best:
        """All of them."""
        return Best(self.names, np.stack(self._rows), np.stack(self._scores))
