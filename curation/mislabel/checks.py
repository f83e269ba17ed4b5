"""Checks of arguments that several signals share.

Axes: N training rows, K classes.
"""

from __future__ import annotations

import numpy as np


def require_finite(
    values: np.ndarray, what: str, *, error: type[Exception] = ValueError, advice: str = "Compute it again."
) -> None:
    """Raise ``error`` naming the first rows of ``values`` [N, ...] that hold NaN or infinity, if any does."""
    wrong = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(wrong):
        rows = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise error(
            f"{what}: expected finite numbers, got NaN or infinity in {len(wrong)} rows (index {rows}). {advice}"
        )


def check_labels(labels: np.ndarray, num_classes: int, *, rows: int) -> None:
    """Raise ValueError unless ``labels`` holds ``rows`` codes, all in 0..num_classes - 1."""
    if num_classes < 2:
        raise ValueError(f"label errors need at least 2 classes, got {num_classes}")
    if labels.shape != (rows,):
        raise ValueError(f"labels: expected shape [{rows}], one a row, got {list(labels.shape)}")
    if rows and not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integer codes, got {labels.dtype}")
    if rows and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"labels: expected codes from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
