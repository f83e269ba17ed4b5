"""The strongest rows of each group, kept while scores stream by.

Axes: G groups, n rows of a stretch, k rows kept a group.
"""

from __future__ import annotations

import numpy as np

from curation.selection.pool import Best


class BestRows:
    """Of several runs of groups over the same rows."""

    def __init__(self, k: int, allowed: np.ndarray) -> None:
        """Keep k rows of those allowed, bool [N]; all of them where they are fewer."""
        self.k, self.allowed = min(k, int(allowed.sum())), allowed
        self._rows: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def of(self, groups: int) -> _Run:
        """The next groups, whose scores of all rows are added stretch by stretch."""
        return _Run(self, groups)

    def keep(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """The best of one more group, [k] each."""
        self._rows.append(rows)
        self._scores.append(scores)

    def take(self, names: list[str]) -> Best:
        """All of them."""
        return Best(names, np.stack(self._rows), np.stack(self._scores).astype(np.float32))


class _Run:
    """Groups that are scored side by side."""

    def __init__(self, kept: BestRows, groups: int) -> None:
        self._kept = kept
        self._rows = [np.zeros(0, dtype=np.int64)] * groups
        self._scores = [np.zeros(0)] * groups

    def add(self, first: int, part: np.ndarray) -> None:
        """Scores [G, n] of rows first, first + 1, ..., after those before."""
        k, allowed = self._kept.k, self._kept.allowed[first : first + part.shape[1]]
        for group, scores in enumerate(part.astype(np.float32)):
            held = self._scores[group]
            least = held[-1] if len(held) >= k else -np.inf
            new = np.flatnonzero(allowed & (scores > least))  # of equals the earlier row stays
            if not len(new):
                continue
            both = np.concatenate([held, scores[new]])
            order = np.argsort(-both, kind="stable")[:k]
            self._rows[group] = np.concatenate([self._rows[group], new + first])[order]
            self._scores[group] = both[order]

    def finish(self) -> None:
        """Hand over what was found."""
        for rows, scores in zip(self._rows, self._scores, strict=True):
            self._kept.keep(rows, scores)
