"""The digits of scikit-learn as a pool of three sources, one of which is worth training on: the data of the demo of select."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch

from curation.data.assembly import assemble, class_problems, option_problems, stratified_split
from curation.data.base import CuratedData
from curation.errors import DataError

SOURCES = ("digits", "wrong labels", "other task")


class MixedDigits(CuratedData):
    """The rows of ``Digits``, some training rows with wrong labels, some of another task; column ``source`` says which.

    The other task is to read digits whose picture is turned by a quarter and whose label is five more, modulo ten. Validation
    rows are digits as they are.

    Args:
        wrong: share of the training rows that get a wrong label, drawn evenly from the others.
        other: share of the training rows that are of the other task.
        validation_fraction: share of each class kept for validation.
        batch_size: rows a step.
        seed: of the split, of which rows are spoilt, and of the order of the training rows.

    Raises:
        DataError: an option is out of its range.
    """

    def __init__(
        self,
        wrong: float = 0.3,
        other: float = 0.3,
        validation_fraction: float = 0.3,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        problems = option_problems(None, validation_fraction, seed, batch_size)
        if not (wrong >= 0 and other >= 0 and wrong + other < 1):
            problems.append(f"wrong and other must be shares that leave some rows as they are, got {wrong} and {other}")
        if problems:
            raise DataError([f"mixed digits: {problem}" for problem in problems])
        from sklearn.datasets import load_digits

        digits = load_digits()
        pictures, labels = digits.images.copy(), digits.target.astype(np.int64)
        ids = pl.Series("example_id", np.arange(len(labels), dtype=np.int64))
        split = stratified_split(ids, pl.Series(labels), validation_fraction, seed)
        draw = np.random.default_rng([seed, len(labels)])
        rows = draw.permutation((split == "train").arg_true().to_numpy())
        spoilt, turned, _ = np.split(rows, np.cumsum([int(share * len(rows)) for share in (wrong, other)]))
        true = labels.copy()
        labels[spoilt] = (labels[spoilt] + draw.integers(1, 10, size=len(spoilt))) % 10
        labels[turned] = true[turned] = (labels[turned] + 5) % 10
        pictures[turned] = np.rot90(pictures[turned], axes=(1, 2))
        sources: np.ndarray = np.full(len(labels), SOURCES[0], dtype=object)
        sources[spoilt], sources[turned] = SOURCES[1], SOURCES[2]
        examples = pl.DataFrame(
            {
                "example_id": ids,
                "label": labels,
                "image": pictures.astype(np.uint8),
                "split": split,
                "source": sources.tolist(),
                "true_label": true,
            }
        )
        problems = class_problems(examples, "mixed digits", ids.to_list())
        if problems:
            raise DataError(problems)
        inputs = torch.from_numpy((pictures / 16.0).astype(np.float32)).unsqueeze(1)
        contents = assemble(examples, inputs, "image", where="mixed digits", noise=None, payload_columns=("image",))
        super().__init__(contents, batch_size=batch_size, seed=seed)
