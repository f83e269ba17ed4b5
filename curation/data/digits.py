"""The handwritten digits that ship with scikit-learn: the data of the demo, nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

from curation.data.assembly import assemble, option_problems, stratified_split
from curation.data.base import CuratedData
from curation.errors import DataError


class Digits(CuratedData):
    """1,797 images of digits, inputs [1, 8, 8] float32 in [0, 1], labels 0 to 9, ids 0 to 1,796 as in scikit-learn.

    Args:
        noise: wrong labels to plant into the training split: ``{"kind": "uniform" | "pairwise" | "feature", "rate": share,
            "seed": number}`` (``curation.data.noise``); the right ones go to the column ``true_label``.
        validation_fraction: share of each class kept for validation.
        batch_size: rows a step.
        seed: of the split and of the order of the training rows.

    Raises:
        DataError: an option is out of its range.
    """

    def __init__(
        self,
        noise: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.2,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        problems = option_problems(noise, validation_fraction, seed, batch_size)
        if problems:
            raise DataError([f"digits: {problem}" for problem in problems])
        from sklearn.datasets import load_digits

        digits = load_digits()
        examples = pl.DataFrame(
            {
                "example_id": np.arange(len(digits.target), dtype=np.int64),
                "label": digits.target.astype(np.int64),
                "image": digits.images.astype(np.uint8),
            }
        )
        examples = examples.with_columns(
            stratified_split(examples["example_id"], examples["label"], validation_fraction, seed)
        )
        inputs = torch.from_numpy((digits.images / 16.0).astype(np.float32)).unsqueeze(1)
        contents = assemble(examples, inputs, "image", where="digits", noise=noise, payload_columns=("image",))
        super().__init__(contents, batch_size=batch_size, seed=seed)
