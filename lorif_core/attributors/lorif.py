"""LoRIF: low-rank influence functions (arXiv 2601.21929; papers/lorif.md in our words: README, "How it works").

Axes: Q queries, N training examples, D = d1 d2 a layer's projected gradient.

Per layer G = (X P_in)^T (dY P_out) ~ U V^T is stored; H = G^T G (truncated SVD) + lambda I over the stored examples;
score(q, i) = sum over layers g_q^T H^-1 g_i with the query's gradient whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load
from torch import Tensor, nn

from lorif_core.atomic import file_digest, single_writer, write_tensors
from lorif_core.attributors.base import Attributor
from lorif_core.capture import frozen
from lorif_core.contraction import dense
from lorif_core.curvature import GRAM_SIDE, fit_curvature
from lorif_core.digests import model_fingerprint
from lorif_core.errors import StoreError
from lorif_core.gradients import device_of, read_plan
from lorif_core.index import Build, Progress
from lorif_core.inverse import DualInverse, LayerInverse, from_tensors, to_tensors
from lorif_core.manifest import Manifest
from lorif_core.objectives import BUILT_IN, Batch, Objective, describe
from lorif_core.options import (
    Bits,
    CurvatureOptions,
    DampingRule,
    IndexOptions,
    Projection,
    Storage,
    checked,
    layer_patterns,
)
from lorif_core.ranks import fit_on_all_ranks, ranks
from lorif_core.scoring import Queries, TopK, all_scores, self_influence, top_k
from lorif_core.store import FactorStore, Ids

log = logging.getLogger(__name__)

CURVATURE = "curvature.safetensors"
QUERY_NUMBERS = 2**27
"""Floats of the queries, and of their scores over a small index, held at once (512 MB); more stream the index again."""


class LoRIF(Attributor):
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
        curvature_rank: int = 256,
        damping: float = 0.5,
        damping_rule: DampingRule = "mean_norm",
        storage: Storage = "factors",
        bits: Bits = 16,
        bytes_per_example: int | None = None,
        layers: Sequence[str] | str | None = None,
        seed: int = 0,
        strict: bool = True,
        bucket: int = 8,
        progress: Progress | None = None,
    ) -> None:
        """Nothing is computed yet. The options are explained in `lorif_core.options`.

        Args:
            model: any module; left exactly as it was after every call.
            objective: what is differentiated and what a query explains.
            projection: identity, rademacher or pca.
            projection_factor: f; a side n of a layer becomes max(1, n // f), sides of at most 16 stay whole.
            factor_rank: c of one example's layer gradient.
            curvature_rank: r of the truncated SVD; more than there are means all.
            damping: multiplier of `damping_rule`.
            damping_rule: mean_norm, trace, paper or absolute.
            storage: factors or dense.
            bits: 32 (float32), 16 (bfloat16), 8, 4, 2 or 1 a stored number.
            bytes_per_example: plans projection_factor, factor_rank, storage and bits, which must then be left out.
            layers: names or globs; None = all supported.
            seed: of projections, power iteration and randomized SVD.
            strict: refuse a model with layers that cannot be attributed.
            bucket: batches of padded texts sorted by length together (`lorif_core.bucketing`); 1 = none. Scores are the same.
            progress: called with (what, rows done, rows in all or None).

        Raises:
            ValueError: options out of range, all of them at once.
        """
        if not isinstance(bucket, int) or bucket < 1:
            raise ValueError(f"bucket: expected an integer >= 1, got {bucket!r}")
        self.model, self.objective = model, objective
        self.options = IndexOptions(
            projection,
            projection_factor,
            factor_rank,
            storage,
            bits,
            bytes_per_example,
            layer_patterns(layers),
            seed,
            strict,
        )
        self.curvature_options = CurvatureOptions(curvature_rank, damping, damping_rule, seed)
        checked(self.options, self.curvature_options)
        self.bucket = bucket
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
            path: a folder; its parents are made.
            ids: one unique id a row, strings or integers.

        Returns:
            This attributor.

        Raises:
            StoreError: the folder holds another index or other data, or another process writes it; a rank failed or was lost.
            ValueError: the loader shuffles, a layer cannot be attributed, a gradient is not finite.
        """
        build = self.build(loader, path, ids)
        if ranks() > 1:
            fit_on_all_ranks(build, self.finish)
        else:
            build.run()
            self.finish(build.path)
        return self

    def build(self, loader: Iterable[Batch], path: str | Path, ids: Ids | None = None) -> Build:
        """The making of the index at `path`, for `lorif_core.parallel`; arguments as of `fit`. Nothing is computed yet."""
        return Build(self.model, self.objective, self.options, loader, Path(path), ids, self._progress, self.bucket)

    def finish(self, folder: Path) -> None:
        """Take the whole index in `folder` and the curvature kept there, or fit it: the last step of a build."""
        self._store, self._curvature = FactorStore.open(folder), None
        self._curvature = self._fit_curvature(keep=True)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, objective: Objective | None = None, **curvature: Any) -> Self:
        """The attributor of a finished index.

        Args:
            path: the index's folder.
            model: the model it was made from, with the same weights.
            objective: needed only where it is not one of the built-in ones.
            curvature: `curvature_rank`, `damping`, `damping_rule` or `progress`, where they should differ from those fitted.

        Raises:
            StoreError: no index, a damaged one, or one of another model.
        """
        store = FactorStore.open(path)
        manifest = store.manifest
        fingerprint = model_fingerprint(model)
        if fingerprint != manifest.model:
            raise StoreError(
                f"the index at {path} was made from another model: expected fingerprint {manifest.model[:12]}, "
                f"got {fingerprint[:12]}; load that model's weights, or build an index for this one"
            )
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
            ValueError: k < 1, or a query's gradient is not finite.
        """
        if k < 1:
            raise ValueError(f"k: expected an integer >= 1, got {k}")
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
        with frozen(self.model), plan.open(self.model) as gradients:
            for batch in loader:
                _, found = gradients(self.objective.measure, batch)
                whole = {name: dense(gradient) for name, gradient in found.items()}
                bad = [name for name, gradient in whole.items() if not bool(torch.isfinite(gradient).all())]
                if bad:
                    raise ValueError(
                        f"a query's gradient is not finite in layers {bad[:5]}: check the queries and the model's weights"
                    )
                yield whole

    def _queries(self, loader: Iterable[Batch]) -> Generator[Queries]:
        """Queries ready to be compared with the index, as many at once as `QUERY_NUMBERS` allows."""
        numbers = max(sum(layer.size for layer in self.store.manifest.layers), min(len(self.store), GRAM_SIDE))
        most = max(1, QUERY_NUMBERS // numbers)
        waiting: list[Queries] = []
        count = 0
        with closing(self.gradients(loader)) as batches:
            for whole in batches:
                waiting.append({name: self._prepared(name, gradient) for name, gradient in whole.items()})
                count += len(next(iter(whole.values())))
                while count >= most:
                    joined = _join(waiting)
                    yield {name: queries[:most] for name, queries in joined.items()}
                    waiting, count = [{name: queries[most:] for name, queries in joined.items()}], count - most
        if count:
            yield _join(waiting)

    def _rows(self, stage: str) -> Callable[[int], None]:
        """Progress over the rows of the index."""
        return lambda done: self._progress(stage, done, len(self.store))

    def _prepared(self, layer: str, gradient: Tensor) -> Tensor:
        """Preconditioned, or as it is where the inverse works on dot products."""
        inverse = self.curvature[layer]
        if isinstance(inverse, DualInverse):
            return gradient
        return inverse.precondition(gradient.flatten(1)).view_as(gradient)

    def _fit_curvature(self, keep: bool) -> dict[str, LayerInverse]:
        """Read the curvature beside the index if it differs from these options in nothing but the multiplier; else fit it.

        Args:
            keep: put what was fitted beside the index.
        """
        wanted = {"options": asdict(self.curvature_options), "data": self.store.manifest.data_digest()}
        folder, manifest = self.store.path, self.store.manifest
        kept = manifest.curvature or {}
        if kept and kept | {"options": kept["options"] | {"damping": self.curvature_options.damping}} == kept | wanted:
            scale = self.curvature_options.damping / kept["options"]["damping"]
            damping = {name: scale * value for name, value in kept["damping"].items()}
            try:
                return _read_curvature(folder / CURVATURE, manifest.files[CURVATURE], damping, self.device)
            except StoreError as error:
                if not keep:
                    raise
                log.warning("%s; fitting it anew", error)
        found = fit_curvature(self.store, self.curvature_options, self.device, self._progress)
        if keep:
            damping = {name: curvature.damping for name, curvature in found.items()}
            self._store = FactorStore(folder, _write_curvature(folder, manifest, found, wanted | {"damping": damping}))
        return found


def _write_curvature(
    folder: Path, manifest: Manifest, found: dict[str, LayerInverse], curvature: dict[str, Any]
) -> Manifest:
    """Put the curvature beside the index; killed at any moment, the manifest lists the whole file or none."""
    others = {file: sha for file, sha in manifest.files.items() if file != CURVATURE}
    with single_writer(folder):
        if manifest.curvature is not None:
            manifest.with_(files=others, curvature=None).write(folder)
        sha, _ = write_tensors(folder / CURVATURE, to_tensors(found))
        manifest = manifest.with_(files={**others, CURVATURE: sha}, curvature=curvature)
        manifest.write(folder)
    return manifest


def _read_curvature(path: Path, sha: str, damping: dict[str, float], device: torch.device) -> dict[str, LayerInverse]:
    if not path.exists() or file_digest(path) != sha:
        raise StoreError(f"{path} is missing or damaged: restore it, or call fit again, which fits it anew")
    return from_tensors(load(path.read_bytes()), damping, device)


def _join(parts: list[Queries]) -> Queries:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
