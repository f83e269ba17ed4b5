"""What can be done to an index once it is built, as methods of an attributor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import nn

from lorif_core.addition import Append
from lorif_core.attributors.base import Attributor
from lorif_core.estimating import Estimate, estimate
from lorif_core.index import Build, Progress
from lorif_core.inverse import LayerInverse
from lorif_core.kept import kept_dampings
from lorif_core.merging import compact
from lorif_core.objectives import Batch, Objective
from lorif_core.options import CurvatureOptions, IndexOptions
from lorif_core.removal import Purged, purge
from lorif_core.shared_curvature import write_share
from lorif_core.store import FactorStore, Ids
from lorif_core.whitening import PRECONDITIONED


class Maintained(Attributor):
    """An attributor over an index that grows, shrinks and is put in order."""

    model: nn.Module
    objective: Objective
    options: IndexOptions
    curvature_options: CurvatureOptions
    bucket: int
    _memory_limit: int
    _progress: Progress
    _store: FactorStore | None
    _curvature: dict[str, LayerInverse] | None

    @property
    @abstractmethod
    def store(self) -> FactorStore:
        """The index."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where products run."""

    @abstractmethod
    def _fit_curvature(self, keep: bool, anew: bool = False) -> dict[str, LayerInverse]:
        """The curvature kept beside the index where that is of these options, else, or `anew`, one fitted now."""

    @abstractmethod
    def build(self, loader: Iterable[Batch], path: str | Path, ids: Ids | None = None) -> Build:
        """The making of the index at `path`."""

    @property
    def _curved(self) -> bool:
        """Whether H is made of the stored gradients; a whitened index has it in its projections."""
        return self.options.projection not in PRECONDITIONED

    def fit_layers(self, folder: Path, worker: int, workers: int) -> None:
        """Fit the curvature of the layers of one worker, 0 .. `workers` - 1, of the whole index in `folder`.

        They are kept beside it until `finish` takes those of all workers: see `lorif_core.shared_curvature`.
        """
        self._store, self._curvature = FactorStore.open(folder), None
        options, limit = self.curvature_options, self._memory_limit
        if self._curved and kept_dampings(self._store.manifest, options) is None:
            write_share(self._store, options, self.device, self._progress, limit, worker, workers)

    def estimate(self, loader: Iterable[Batch]) -> Estimate:
        """What `fit` over this loader will take: bytes, seconds, memory; a few batches are run, nothing is written.

        Raises:
            ValueError: the loader shuffles or does not say how many examples it has, a layer cannot be attributed.
        """
        return estimate(self.build(loader, "."), self.curvature_options)

    def append(self, loader: Iterable[Batch], ids: Ids | None = None) -> Self:
        """Add examples to the index, after those it has; continues what an interrupted call left.

        Others may read the index meanwhile, as it was. The curvature kept beside it is updated, and the log says when it
        should be fitted anew (`refit`).

        Args:
            loader: batches of the new examples only.
            ids: one id a new row, that no other row has; needed where the index has ids. A repeated call is recognised by them.

        Returns:
            This attributor.

        Raises:
            StoreError: no index, another model, ids that are there already, or another process writes the index.
            ValueError: the loader shuffles, or a loss or gradient is not finite.
        """
        path = self.store.path
        Append(self.build(loader, path, ids)).run()
        return self._reopened()

    def purge(self, ids: Sequence[str] | Sequence[int], *, refit: bool = False) -> Purged:
        """Remove examples for good, their bytes too; see `lorif_core.removal`.

        Args:
            ids: of the rows to remove; those the index does not have are reported.
            refit: fit the curvature anew from the rows that stay, rather than update it.

        Returns:
            `.rows` removed, `.shards` that held them, `.not_found` ids.

        Raises:
            StoreError: no index, nothing would be left, or another process writes it.
        """
        limit = self._memory_limit
        done = purge(self.store.path, ids, self.device, self._progress, refit=refit, memory_limit=limit)
        self._reopened()
        return done

    def compact(self) -> int:
        """Merge small shards; returns how many were merged into others.

        Raises:
            StoreError: no index, or another process writes it.
        """
        merged = compact(self.store.path)
        self._reopened()
        return merged

    def refit(self) -> Self:
        """Fit the curvature anew from all rows, which append and purge only update.

        Raises:
            StoreError: no index, an append to it is unfinished, or another process writes it.
        """
        self._curvature = self._fit_curvature(keep=True, anew=True)
        return self

    def _reopened(self) -> Self:
        self._store, self._curvature = FactorStore.open(self.store.path, self.store.trust), None
        return self
