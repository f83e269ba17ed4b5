"""What single target rows say of a few rows of the pool: as `curation.selection.aggregate`, with each target row a group.

Axes: Q target rows, n rows of the pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

import numpy as np

from curation.selection.checkpoints import Checkpoint, check_same_rows
from curation.selection.group_scores import group_scores
from lorif_core.objectives import Batch, batch_rows


def pair_scores(
    checkpoints: Sequence[Checkpoint],
    loader: Iterable[Batch],
    rows: np.ndarray,
    *,
    normalise: bool = False,
    layer_weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """The scores of some rows for each target row, float32 [Q, n]; positive = proponent.

    Args:
        checkpoints: with indexes of the pool.
        loader: batches of target rows.
        rows: positions in the indexes, ascending, int64 [n].
        normalise: divide target and pool gradients by their lengths.
        layer_weights: a factor for some layers' parts; 1 where left out.

    Raises:
        DataError: the checkpoints' indexes are not of the same rows.
    """
    check_same_rows(checkpoints)
    batches = list(loader)
    count = sum(batch_rows(batch) for batch in batches)
    found = np.zeros((count, len(rows)), dtype=np.float32)
    if not found.size:
        return found
    with closing(group_scores(checkpoints, batches, np.arange(count), normalise, layer_weights or {})) as parts:
        for part in parts:
            here = np.flatnonzero((rows >= part.first) & (rows < part.first + part.scores.shape[1]))
            found[part.groups.start : part.groups.stop, here] = part.scores[:, rows[here] - part.first]
    return found
