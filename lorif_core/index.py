"""Building an index: one pass over the training data, from a model to a factor store on disk.

Axes: B examples of a batch, N training examples, d1 / d2 projected sides, c factor rank.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from lorif_core import projections as projection_kinds
from lorif_core.atomic import single_writer, write_tensors
from lorif_core.capture import GradientCollector, frozen, tapped
from lorif_core.coverage import Coverage, cover
from lorif_core.digests import ExampleDigest, model_fingerprint
from lorif_core.factors import factorise
from lorif_core.layers import Layer, LayerGradient
from lorif_core.manifest import MANIFEST, LayerEntry, Manifest, StoreError, read_manifest
from lorif_core.objectives import Batch, Objective, batch_rows, to_device
from lorif_core.options import IndexOptions, differences
from lorif_core.projections import Projections
from lorif_core.store import SHARDS, Ids, StoreWriter, check_rows, shard_rows

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]
"""(what is being done, rows done, rows in all where known)."""


def build(
    model: nn.Module,
    objective: Objective,
    options: IndexOptions,
    loader: Iterable[Batch],
    path: Path,
    ids: Ids | None,
    progress: Progress,
) -> Manifest:
    """Index every example of `loader` at `path`, continuing what an earlier, interrupted call left there.

    Raises:
        StoreError: the folder holds an index of another model, other options or other data, or another process writes it.
        ValueError: the loader shuffles, a layer cannot be attributed, a gradient is not finite.
    """
    refuse_shuffling(loader)
    path.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    try:
        with single_writer(path), frozen(model):
            manifest, coverage, projections = _resume_or_start(model, objective, options, loader, path, progress)
            manifest = _write_shards(model, objective, coverage, projections, manifest, loader, path, ids, progress)
    except BlockingIOError as error:
        raise StoreError(str(error)) from None
    log.info("indexed %d examples at %s in %.1f s", manifest.examples, path, time.perf_counter() - begin)
    return manifest


def _write_shards(
    model: nn.Module,
    objective: Objective,
    coverage: Coverage,
    projections: Projections,
    manifest: Manifest,
    loader: Iterable[Batch],
    path: Path,
    ids: Ids | None,
    progress: Progress,
) -> Manifest:
    ranks = {layer.name: layer.rank for layer in manifest.layers}
    writer = StoreWriter(path, manifest, shard_rows(manifest.bytes_per_example))
    device, digest = device_of(model), ExampleDigest()
    total = len(ids) if ids is not None else examples_of(loader)
    gradients = BatchGradients(model, coverage.layers, projections.to(device))
    row = 0
    with gradients:
        for batch in loader:
            size = batch_rows(batch)
            done = check_rows(path, manifest, batch, row, digest)
            if done < size:
                losses, found = gradients(objective.loss, to_device(batch, device))
                factors = factorise(found, ranks, manifest.options["seed"])
                _check_finite(losses, factors, row, ids)
                writer.append(factors, losses, batch, done)
            row += size
            progress("index", row, total)
    if row < manifest.examples:
        raise StoreError(
            f"{path} already holds {manifest.examples} examples, the loader gave only {row}: the data changed; use another folder"
        )
    if manifest.complete:
        if ids is not None and len(ids) != row:
            raise StoreError(f"expected one id a training example: got {len(ids)} ids for {row} examples")
        return manifest
    return writer.close(ids)


class BatchGradients:
    """Projected per-example gradients of a batch, for every layer; a context manager, for its hooks' lifetime."""

    def __init__(self, model: nn.Module, layers: list[Layer], projections: Projections) -> None:
        """`model` must be frozen for as long as this is open."""
        self._collector = GradientCollector(projections.sides)
        self._tapped = tapped(model, layers, self._collector.on_input, self._collector.on_gradient)

    def __enter__(self) -> BatchGradients:
        self._tape = self._tapped.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._tapped.__exit__(*exception)

    def __call__(
        self, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, LayerGradient]]:
        """(losses [B], per layer the pair (X P_in, dY P_out) or the matrix [B, d1, d2])."""
        self._collector.batch_size = batch_rows(batch)
        losses = self._tape(loss, batch)
        return losses, self._collector.take()


def _resume_or_start(
    model: nn.Module,
    objective: Objective,
    options: IndexOptions,
    loader: Iterable[Batch],
    path: Path,
    progress: Progress,
) -> tuple[Manifest, Coverage, Projections]:
    fingerprint = model_fingerprint(model)
    if (path / MANIFEST).exists():
        manifest = read_manifest(path)
        changed = differences(manifest.options, plain(options)) + differences(
            {"objective": manifest.objective}, {"objective": name_of(objective)}
        )
        if manifest.model != fingerprint:
            changed.append(f"model: {manifest.model[:12]} -> {fingerprint[:12]}")
        if changed:
            raise StoreError(
                f"{path} holds an index made otherwise ({'; '.join(changed)}): use another folder, or remove this one"
            )
        coverage = covered(model, manifest)
        projections = load_projections(path, manifest, coverage.layers)
        for stray in [*path.glob(".*.tmp"), *(path / SHARDS).glob("*")]:
            if str(stray.relative_to(path)) not in {shard.file for shard in manifest.shards}:
                stray.unlink()
        if manifest.shards:
            log.info("continuing at row %d of %s", manifest.examples, path)
        return manifest, coverage, projections
    shutil.rmtree(path / SHARDS, ignore_errors=True)
    coverage = cover(model, options.layers, strict=options.strict)
    coverage, positions = _probe(model, objective, coverage, loader, options.strict)
    projections = _projections(model, objective, options, coverage, positions, loader, progress)
    files = {}
    if options.projection == "pca":
        files["projection.safetensors"], _ = write_tensors(path / "projection.safetensors", projections.tensors())
    manifest = Manifest(
        options=plain(options),
        objective=name_of(objective),
        model=fingerprint,
        layers=[_entry(layer, projections, options.factor_rank, positions[layer.name]) for layer in coverage.layers],
        left_out=coverage.left_out,
        coverage=coverage.share,
        projection=projections.digest(),
        positions=max(positions.values()),
        files=files,
    )
    manifest.write(path)
    return manifest, coverage, projections


def _probe(
    model: nn.Module, objective: Objective, coverage: Coverage, loader: Iterable[Batch], strict: bool
) -> tuple[Coverage, dict[str, int]]:
    """Run the first batch to see which layers the loss reaches, and at how many positions of each example."""
    device = device_of(model)
    positions: dict[str, int] = {}

    def count(layer: Layer, _: None, dy: Tensor) -> None:
        here = 1 if not layer.rule.paired else dy.numel() // (layer.columns * max(size, 1))
        positions[layer.name] = positions.get(layer.name, 0) + here

    batch = next(iter(loader), None)
    if batch is None:
        raise StoreError("the loader gave no examples: nothing to index")
    size = batch_rows(batch)
    with tapped(model, coverage.layers, lambda layer, x: None, count) as tape:
        tape(objective.loss, to_device(batch, device))
    unused = {
        layer.name: "runs under no_grad"
        if layer.name in tape.no_grad
        else "its forward is never called, or the loss does not depend on it"
        for layer in coverage.layers
        if layer.name not in positions
    }
    return coverage.without(unused, model, strict), positions


def _projections(
    model: nn.Module,
    objective: Objective,
    options: IndexOptions,
    coverage: Coverage,
    positions: dict[str, int],
    loader: Iterable[Batch],
    progress: Progress,
) -> Projections:
    if options.projection == "identity":
        return projection_kinds.identity(coverage.layers)
    if options.projection == "rademacher":
        return projection_kinds.rademacher(coverage.layers, options.projection_factor, options.seed)
    fewest = min(positions[layer.name] for layer in coverage.layers if layer.rule.paired) if coverage.layers else 1
    return projection_kinds.pca(
        model,
        coverage.layers,
        objective.loss,
        loader,
        options.projection_factor,
        fewest,
        device_of(model),
        lambda done, total: progress("projection", done, total),
    )


def _entry(layer: Layer, projections: Projections, factor_rank: int, positions: int) -> LayerEntry:
    d1, d2 = projections.size(layer)
    # one position gives rank one; so c above the positions of a vector layer would store zeros
    rank = min(factor_rank, d1, d2, positions) if layer.rule.paired and positions == 1 else min(factor_rank, d1, d2)
    return LayerEntry(layer.name, type(layer.module).__name__, layer.rows, layer.columns, d1, d2, rank)


def covered(model: nn.Module, manifest: Manifest) -> Coverage:
    """The indexed layers of a model that has the indexed fingerprint."""
    names = [layer.name for layer in manifest.layers]
    found = {layer.name: layer for layer in cover(model, names, strict=True).layers}
    return Coverage([found[name] for name in names], manifest.left_out, manifest.coverage)


def load_projections(path: Path, manifest: Manifest, layers: list[Layer]) -> Projections:
    """The projections of an index, read back (pca) or made again.

    Raises:
        StoreError: they are not the ones the index was made with.
    """
    kind = manifest.options["projection"]
    if kind == "identity":
        found = projection_kinds.identity(layers)
    elif kind == "rademacher":
        found = projection_kinds.rademacher(layers, manifest.options["projection_factor"], manifest.options["seed"])
    else:
        file = path / "projection.safetensors"
        if not file.exists():
            raise StoreError(f"{file} is missing: restore it or rebuild the index")
        stored = load(file.read_bytes())
        found = Projections(kind, {x.name: (stored.get(f"in.{x.name}"), stored.get(f"out.{x.name}")) for x in layers})
    if found.digest() != manifest.projection:
        raise StoreError(
            f"the projections of {path} are not those it was built with: restore its files or rebuild the index"
        )
    return found


def refuse_shuffling(loader: Iterable[Batch]) -> None:
    """Nothing, for a loader whose order can be the train index.

    Raises:
        ValueError: the loader shuffles, so rows of its scores could not be told apart.
    """
    sampler = getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    for one in (sampler, getattr(batch_sampler, "sampler", None)):
        if isinstance(one, torch.utils.data.Sampler) and (
            "Random" in type(one).__name__ or getattr(one, "shuffle", False)
        ):
            raise ValueError(
                f"the loader's order is the index of its rows, but it shuffles ({type(one).__name__}): "
                "pass a DataLoader with shuffle=False over the same dataset"
            )


def _check_finite(losses: Tensor, factors: dict[str, tuple[Tensor, Tensor]], row: int, ids: Ids | None) -> None:
    """Nothing, when every loss and factor of the batch is finite.

    Raises:
        ValueError: naming rows and layers.
    """
    finite = torch.isfinite(losses)
    sums = {name: (u.sum((1, 2)) + v.sum((1, 2))) for name, (u, v) in factors.items()}
    for value in sums.values():
        finite = finite & torch.isfinite(value)
    if bool(finite.all()):
        return
    rows = [row + int(i) for i in (~finite).nonzero().flatten()]
    names = rows if ids is None else [ids[i] for i in rows]
    layers = [name for name, value in sums.items() if not bool(torch.isfinite(value).all())]
    raise ValueError(
        f"{len(rows)} examples have a loss or gradient that is not finite: ids {names[:5]}, layers {layers[:5]}; "
        "check these rows' inputs and the model's weights"
    )


def examples_of(loader: Iterable[Batch]) -> int | None:
    """How many examples a loader will give, where it says."""
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def name_of(objective: Objective) -> str:
    """An objective's name in manifests."""
    return type(objective).__name__


def plain(options: IndexOptions) -> dict[str, Any]:
    """Options as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
