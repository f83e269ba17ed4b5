"""Small pools for the tests of selection."""

from __future__ import annotations

from typing import Any

import numpy as np

from curation.selection.pool import Pool


def pool_of(scores: Any, **parts: Any) -> Pool:
    """A pool with these scores, rows of length one that are all allowed, and `parts` instead or beside."""
    scores = np.asarray(scores, dtype=np.float32)
    count = len(scores)
    given = {"ids": [f"row{i}" for i in range(count)], "lengths": np.ones(count, dtype=np.int64)}
    given |= {"allowed": np.ones(count, dtype=bool), **parts}
    return Pool(scores=scores, **given)
