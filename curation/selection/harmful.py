"""Rows that hurt the target: training on them raises its loss."""

from __future__ import annotations

import numpy as np

from curation.selection.exclusions import Exclusion


def harmful(mean: np.ndarray, share: float = 1.0, below: float = 0.0) -> list[Exclusion]:
    """The rows to exclude, worst first, ties in pool order.

    Args:
        mean: scores over all target rows, float [N] (`Scored.mean`): positive = proponent. Not a maximum, which tells what a row
            does for the group it helps most.
        share: of the rows, at most, in [0, 1].
        below: a score from which on a row does no harm; at most 0.

    Raises:
        ValueError: share or below are out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    if below > 0:
        raise ValueError(f"below: expected at most 0, where rows begin to hurt; got {below}")
    rows = np.flatnonzero(mean < below)
    rows = rows[np.argsort(mean[rows], kind="stable")][: int(share * len(mean))]
    return [Exclusion(int(row), "training on it raises the target's loss", None, float(mean[row])) for row in rows]
