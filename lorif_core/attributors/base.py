"""The protocol every attribution method follows.

Axes: Q queries, N training examples (rows in the order of the training loader), k best kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from torch import Tensor

from lorif_core.objectives import Batch
from lorif_core.scoring import TopK
from lorif_core.store import Ids


class Attributor(ABC):
    """Which training examples made the model do this?

    A score is POSITIVE for a proponent: training on the example lowers the query's measure, removing it raises it.
    """

    @abstractmethod
    def fit(self, loader: Iterable[Batch], path: str | Path, ids: Ids | None = None) -> Self:
        """Index the training examples at `path`, or continue an index begun there."""

    @abstractmethod
    def score(self, loader: Iterable[Batch]) -> Tensor:
        """Every score, float32 [Q, N]."""

    @abstractmethod
    def top_k(self, loader: Iterable[Batch], k: int, *, largest: bool = True) -> TopK:
        """The k strongest proponents (`largest=False`: opponents) of each query: `.indices`, `.scores` [Q, k]."""

    @abstractmethod
    def self_influence(self) -> Tensor:
        """How much each training example explains itself, float32 [N]."""
