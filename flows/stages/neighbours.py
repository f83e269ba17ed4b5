"""The training rows that speak most for or against a training row, itself left out.

Axes: Q rows asked about, k neighbours of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorif_core import LoRIF


@dataclass(frozen=True)
class Neighbours:
    """Strongest first.

    Attributes:
        rows: int64 [Q, k], positions among the training rows.
        scores: float64 [Q, k], attribution; positive = supports the label that was asked about.
    """

    rows: np.ndarray
    scores: np.ndarray


def strongest(attributor: LoRIF, loader: Iterable[Any], asked: np.ndarray, k: int, *, largest: bool) -> Neighbours:
    """The ``k`` strongest supporters (``largest``) or opponents of each row, or as many as there are other rows.

    Args:
        attributor: of the index of the training rows.
        loader: yields the rows asked about, each with the label it is asked about.
        asked: int64 [Q], their own positions among the training rows.
        k: how many.
        largest: supporters; False for opponents.
    """
    found = attributor.top_k(loader, k + 1, largest=largest)
    rows, scores = found.indices.cpu().numpy(), found.scores.double().cpu().numpy()
    others = rows != asked[:, None]
    others[others.all(axis=1), -1] = False  # a row that is not among its own strongest: the weakest goes instead
    kept = rows.shape[1] - 1
    return Neighbours(rows[others].reshape(-1, kept), scores[others].reshape(-1, kept))
