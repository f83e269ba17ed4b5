"""LoRIF: low-rank influence functions (arXiv 2601.21929; papers/lorif.md in our words: README, "How it works").

Axes: Q queries, N training examples, D = d1 d2 a layer's projected gradient.

Per layer G = (X P_in)^T (dY P_out) ~ U V^T is stored; H = G^T G (of its largest directions) + lambda I over all examples;
score(q, i) = sum over layers g_q^T H^-1 g_i with the query's gradient whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from lorif_core.attributors.maintained import Maintained
from lorif_core.capture import frozen
from lorif_core.curvature import GRAM_SIDE, MEMORY_LIMIT, fit_curvature
from lorif_core.digests import check_model
from lorif_core.errors import StoreError
from lorif_core.gradients import device_of, read_plan
from lorif_core.index import Build, Progress
from lorif_core.inverse import LayerInverse, identities
from lorif_core.kept import kept_curvature, record_of, replace_curvature
from lorif_core.objectives import BUILT_IN, Batch, Objective, describe
from lorif_core.options import (
    Bits,
    CurvatureOptions,
    DampingRule,
    IndexOptions,
    Projection,
    Storage,
    WorkOptions,
    checked,
    checked_changes,
    checked_count,
    layer_patterns,
)
from lorif_core.precision import Precision, in_precision
from lorif_core.queries import query_gradients, ready_queries
from lorif_core.query_cache import query_cache
from lorif_core.ranks import fit_on_all_ranks, ranks
from lorif_core.remote import checkout
from lorif_core.scoring import Queries, TopK, all_scores, self_influence, top_k
from lorif_core.shared_curvature import fit_missing
from lorif_core.store import FactorStore, Ids

log = logging.getLogger(__name__)

QUERY_NUMBERS = 2**27
"""Floats of the queries, and of their scores over a small index, held at once (512 MB); more stream the index again."""


class LoRIF(Maintained):
    """Low-rank influence functions over a factor store on disk.

    Example:
        >>> attributor = LoRIF(model, Classification()).fit(train_loader, path="workspace/index")
        >>> scores = attributor.score(query_loader)  # [n_query, n_train], positive = proponent

    Limitations: a weight used by two modules (tied embeddings) is attributed as if each had its own; layers must have the
    examples as the first axis of their input; what no rule covers is named in an error, or left out with `strict=False`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        projection: Projection = "pca",
        projection_factor: float = 4,
        factor_rank: int = 1,
        curvature_rank: int | Literal["auto"] = "auto",
        damping: float | Literal["auto"] = 0.5,
        damping_rule: DampingRule = "mean_norm",
        storage: Storage = "factors",
        bits: Bits = 16,
        bytes_per_example: int | None = None,
        precision: Precision = "32",
        layers: Sequence[str] | str | None = None,
        seed: int = 0,
        strict: bool = True,
        bucket: int = 8,
        memory_limit: int = MEMORY_LIMIT,
        progress: Progress | None = None,
    ) -> None:
        """Nothing is computed yet. The options are explained in `lorif_core.options`.

        Args:
            model: any module; left exactly as it was after every call.
            objective: what is differentiated and what a query explains.
            projection: identity, rademacher, pca, whitened, or kfac and kfac_true, with which curvature options have no effect.
            projection_factor: f; a side n of a layer becomes max(1, n // f), sides of at most 16 stay whole. Of an index planned by
                `bytes_per_example`, n m / f^2 numbers a layer, its sides as even as can be.
            factor_rank: c of one example's layer gradient.
            curvature_rank: r of the truncated SVD; more than there are means all; "auto": 256, or all where that is cheaper.
            damping: multiplier of `damping_rule`, or "auto".
            damping_rule: mean_norm, trace, paper or absolute.
            storage: factors or dense.
            bits: 32 (float32), 16 (bfloat16), 8, 4, 2 or 1 a stored number.
            bytes_per_example: plans projection_factor, factor_rank, storage and bits, which must then be left out.
            precision: 32, or bf16 for a forward and backward pass under autocast.
            layers: names or globs; None = all supported.
            seed: of projections, power iteration and randomized SVD.
            strict: refuse a model with layers that cannot be attributed.
            bucket: batches of padded texts sorted by length together (`lorif_core.bucketing`); 1 = none. Scores are the same.
            memory_limit: bytes of the sums a pass may hold; less means more passes (`lorif_core.options`).
            progress: called with (what, rows done, rows in all or None).

        Raises:
            ValueError: options out of range, all of them at once.
        """
        self.model, self.objective = model, objective
        self.options = IndexOptions(
            projection,
            projection_factor,
            factor_rank,
            storage,
            bits,
            bytes_per_example,
            precision,
            layer_patterns(layers),
            seed,
            strict,
        )
        self.curvature_options = CurvatureOptions(curvature_rank, damping, damping_rule, seed)
        checked(self.options, self.curvature_options, WorkOptions(bucket, memory_limit))
        self.bucket, self._memory_limit = bucket, memory_limit
        self._progress: Progress = progress or (lambda stage, done, total: None)
        self._store: FactorStore | None = None
        self._curvature: dict[str, LayerInverse] | None = None

    @property
    def store(self) -> FactorStore:
        """The index.

        Raises:
            StoreError: nothing was fitted or loaded yet.
        """
        if self._store is None:
            raise StoreError("there is no index yet: call fit(loader, path=...), or LoRIF.load(path, model)")
        return self._store

    @property
    def device(self) -> torch.device:
        """Where products run: the model's device."""
        return device_of(self.model)

    def fit(self, loader: Iterable[Batch], path: str | Path, ids: Ids | None = None) -> Self:
        """Index the training examples at `path` and fit the curvature; continues what an interrupted call left.

        Under an initialised `torch.distributed` group (`torchrun`, Lightning Fabric) the rows are split over its ranks;
        each must call this with the same model, loader (of all rows) and path, on a disk that all of them see.

        Args:
            loader: batches in index order; `(inputs, targets)`, dicts, or token ids.
            path: a folder, whose parents are made, or an fsspec URL such as s3://bucket/index (lorif_core.remote).
            ids: one unique id a row, strings or integers.

        Returns:
            This attributor.

        Raises:
            StoreError: the folder holds another index or other data, or another process writes it; a rank failed or was lost.
            ValueError: the loader shuffles, a layer cannot be attributed, a gradient is not finite.
        """
        build = self.build(loader, path, ids)
        if ranks() > 1:
            fit_on_all_ranks(build, self.fit_layers, self.finish)
        else:
            build.run()
            self.finish(build.path)
        return self

    def build(self, loader: Iterable[Batch], path: str | Path, ids: Ids | None = None) -> Build:
        """The making of the index at `path`, for `lorif_core.parallel`; arguments as of `fit`. Nothing is computed yet."""
        work = self._progress, self.bucket, self._memory_limit
        return Build(self.model, self.objective, self.options, loader, checkout(path), ids, *work)

    def finish(self, folder: Path) -> None:
        """Take the whole index in `folder` and the curvature kept there, or fit what is missing: the last step of a build."""
        self._store, self._curvature = FactorStore.open(folder), None
        self._curvature = self._fit_curvature(keep=True)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        trust: bool = False,
        **curvature: Any,
    ) -> Self:
        """The attributor of a finished index.

        Args:
            path: the index's folder.
            model: the model it was made from, with the same weights.
            objective: needed only where it is not one of the built-in ones.
            trust: read shards without comparing them with their digests first (`FactorStore`).
            curvature: what `lorif_core.options.NO_INDEX` names, where not as fitted: `damping`, say.

        Raises:
            StoreError: no index, a damaged one, or one of another model.
            ValueError: an option that would need another index.
        """
        checked_changes(curvature)
        store = FactorStore.open(path, trust)
        manifest = store.manifest
        check_model(path, manifest.model, model)
        if objective is None:
            if manifest.objective not in BUILT_IN:
                raise StoreError(
                    f"the index at {path} was made with objective {manifest.objective}: pass it as objective=..."
                )
            objective = BUILT_IN[manifest.objective]()
        elif describe(objective) != manifest.objective:
            raise StoreError(
                f"the index at {path} was made with objective {manifest.objective}, got {describe(objective)}"
            )
        fitted = {k: v for k, v in ((manifest.curvature or {}).get("options", {})).items() if k != "seed"}
        planned = {**manifest.options, "bytes_per_example": None}  # its choices are in the other options
        attributor = cls(model, objective, **{**planned, **fitted, **curvature})
        attributor._store = store
        return attributor

    def score(self, loader: Iterable[Batch]) -> Tensor:
        """Scores of every query against every training example.

        Returns:
            float32 [Q, N]; positive = proponent.

        Raises:
            StoreError: there is no index.
            ValueError: a query's gradient is not finite.
        """
        with closing(self._queries(loader)) as batches:
            tables = [
                all_scores(self.store, queries, self.curvature, self.device, self._rows("score")) for queries in batches
            ]
        return torch.cat(tables) if tables else torch.empty(0, len(self.store))

    def top_k(self, loader: Iterable[Batch], k: int, *, largest: bool = True) -> TopK:
        """The strongest training examples of each query; over `GRAM_SIDE` rows the table of scores is never held.

        Args:
            loader: batches of queries.
            k: how many; all, where the index has fewer.
            largest: proponents; False for opponents.

        Returns:
            `.indices` int64 [Q, k] and `.scores` float32 [Q, k], strongest first.

        Raises:
            StoreError: there is no index.
            ValueError: k is no integer >= 1, or a query's gradient is not finite.
        """
        k = checked_count(k)
        with closing(self._queries(loader)) as batches:
            found = [
                top_k(self.store, queries, self.curvature, k, largest, self.device, self._rows("top_k"))
                for queries in batches
            ]
        if not found:
            return TopK(torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0))
        return TopK(torch.cat([x.indices for x in found]), torch.cat([x.scores for x in found]))

    def self_influence(self) -> Tensor:
        """g_i^T H^-1 g_i of each stored training example.

        Returns:
            float32 [N], >= 0.

        Raises:
            StoreError: there is no index.
        """
        layers = len(self.store.manifest.layers)
        return self_influence(
            self.store, self.curvature, self.device, lambda done: self._progress("self-influence", done, layers)
        )

    @property
    def curvature(self) -> dict[str, LayerInverse]:
        """The damped inverse curvature of each layer: the one kept beside the index, or fitted now for other options.

        An index that was loaded is not changed, unless it has no curvature yet.
        """
        if self._curvature is None:
            self._curvature = self._fit_curvature(keep=self.store.manifest.curvature is None)
        return self._curvature

    def gradients(self, loader: Iterable[Batch]) -> Generator[dict[str, Tensor]]:
        """Projected gradients of the measure, whole: per layer [B, d1, d2] float32, batch by batch.

        The model is frozen until the generator ends or is closed.

        Raises:
            ValueError: a gradient is not finite.
        """
        plan = read_plan(self.store.path, self.store.manifest, self.model)
        measure = in_precision(self.objective.measure, self.options.precision, self.device)
        return query_gradients(plan, self.model, measure, loader)

    def _queries(self, loader: Iterable[Batch]) -> Generator[Queries]:
        """Queries ready to be compared with the index, as many at once as `QUERY_NUMBERS` allows.

        The model is frozen, and the random state set aside (a loader may draw from it), until the generator is closed.
        """
        numbers = max(sum(layer.size for layer in self.store.manifest.layers), min(len(self.store), GRAM_SIDE))
        most = max(1, QUERY_NUMBERS // numbers)
        with frozen(self.model):
            cache = query_cache(self.store, self.model, self.objective, self.options.precision, self.curvature)
            yield from ready_queries(loader, self.gradients, self.curvature, cache, len(self.store), most, self.device)

    def _rows(self, stage: str) -> Callable[[int], None]:
        """Progress over the rows of the index."""
        return lambda done: self._progress(stage, done, len(self.store))

    def _fit_curvature(self, keep: bool, anew: bool = False) -> dict[str, LayerInverse]:
        """Read the curvature beside the index if it differs from these options in nothing but the multiplier; else fit it.

        Args:
            keep: put what was fitted beside the index.
            anew: do not read what is there.
        """
        if not self._curved:
            return identities({layer.name: layer.size for layer in self.store.manifest.layers}, self.device)
        store, options = self.store, self.curvature_options
        try:
            kept = None if anew else kept_curvature(store, options, self.device)
        except StoreError as error:
            if not keep:
                raise
            log.warning("%s; fitting it anew", error)
        else:
            if kept is not None:
                return kept
        fit = fit_curvature if anew else fit_missing
        found = fit(store, options, self.device, self._progress, self._memory_limit)
        if keep:
            manifest = replace_curvature(store.path, store.manifest, found, record_of(store.manifest, options))
            self._store = FactorStore(store.path, manifest, store.trust)
        return found
