"""What an index will cost, before it is built: bytes from the layers' shapes, time from a few batches, memory from both.

Axes: N training examples, D = d1 d2 a layer's flattened gradient, r curvature rank, a / b input and output side of a layer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import islice

import torch

from lorif_core import projections as kinds
from lorif_core.bucketing import windows
from lorif_core.capture import frozen
from lorif_core.codecs import row_bytes
from lorif_core.coverage import cover
from lorif_core.curvature import (
    DUAL_BYTES,
    GRAM_SIDE,
    OVERSAMPLING,
    POWER_ITERATIONS,
    is_dual,
    whole_layers,
)
from lorif_core.gradients import GradientPlan, device_of
from lorif_core.index import Build, planned, shapes_of
from lorif_core.loaders import check_loader, examples_of
from lorif_core.manifest import LayerEntry, sizes_of
from lorif_core.measured import MEASURED, groups, sample_size
from lorif_core.moments import moment_bytes
from lorif_core.objectives import batch_rows
from lorif_core.options import EXACT_SIDE, CurvatureOptions
from lorif_core.passes import Gram, RandomizedSVD
from lorif_core.planning import entries
from lorif_core.precision import in_precision
from lorif_core.probe import probe
from lorif_core.rows import made_of
from lorif_core.store import SHARD_BYTES
from lorif_core.whitening import PRECONDITIONED

TIMED = 2
"""Windows of batches that are run to be timed, after one that warms up."""
SIDE = 512
"""Of the matrices whose product is timed."""
SAMPLES = 5
"""Products timed for the matrix rate."""


@dataclass(frozen=True)
class Estimate:
    """What `fit` will take; seconds are this machine's, and as rough as a few batches are."""

    examples: int
    layers: int
    bytes_per_example: int
    bytes: int
    """On disk: the rows, the projections where they are kept, and the curvature."""
    index_seconds: float
    """Forward and backward passes, projecting and factoring; those over a sample for measured projections are counted alike."""
    curvature_seconds: float
    memory: int
    """Bytes above the model and its activations: the shard being filled and written, projections, the curvature's sums."""
    plan: str
    """Why the options are what they are, where `bytes_per_example` planned them."""


def estimate(build: Build, curvature: CurvatureOptions) -> Estimate:
    """What `build` and the curvature after it will take; nothing is written, the model is left as it was.

    Args:
        build: as for `fit`; its path is not looked at.
        curvature: rank of what follows.

    Raises:
        ValueError: the loader shuffles or does not say how many examples it has, a layer cannot be attributed, no plan fits.
        StoreError: the loader is empty.
    """
    memory_limit = build.memory_limit
    check_loader(build.loader)
    examples = examples_of(build.loader)
    if examples is None:
        raise ValueError(
            "the loader does not say how many examples it has: pass a DataLoader over a dataset with a length"
        )
    device = device_of(build.model)
    loss = in_precision(build.objective.loss, build.options.precision, device)
    with frozen(build.model):
        coverage = cover(build.model, build.options.layers, strict=build.options.strict)
        seen = probe(build.model, loss, coverage, build.loader, device, build.options.strict)
        options, reason = planned(build.options, seen)
        layers = entries(shapes_of(seen), options)
        attributed = seen.coverage.layers
        # any projection of the sizes takes the time of the one there will be
        sides = (
            kinds.identity(attributed)
            if options.projection == "identity"
            else kinds.rademacher(attributed, sizes_of(layers), options.seed)
        )
        plan = GradientPlan(attributed, sides, seen.shared, seen.modified)
        seconds = _seconds_per_example(replace(build, options=options), plan, layers)
    matrices = 4 * sum(matrix.numel() for matrix in sides.tensors().values())
    measured = options.projection in MEASURED
    passes = groups(attributed, memory_limit) if measured else []
    moments = max((sum(map(moment_bytes, group)) for group in passes), default=0)
    sampled = len(passes) * -(-examples // max(1, examples // sample_size(options, seen)))
    size = row_bytes(layers, options.bits)
    fitted = [] if options.projection in PRECONDITIONED else layers
    whole = whole_layers(fitted, examples, curvature, memory_limit)
    sums = max((_curvature_bytes(layer, examples, curvature, memory_limit) for layer in fitted), default=0)
    kept = sum(_kept_bytes(x, examples, curvature, memory_limit) for x in fitted if x.name not in whole)
    return Estimate(
        examples,
        len(layers),
        size,
        size * examples + (matrices if measured else 0) + kept,
        seconds * (examples + sampled),
        sum(_curvature_flops(x, examples, curvature, memory_limit, x.name in whole) for x in fitted)
        / _matrix_rate(device),
        matrices
        + 8 * len(whole) * examples**2
        + max(moments, 3 * min(SHARD_BYTES, size * examples), max(sums, min(memory_limit, sums * len(fitted)))),
        reason,
    )


def _seconds_per_example(build: Build, plan: GradientPlan, layers: list[LayerEntry]) -> float:
    """Of gradients and factors, over a few windows."""
    ranks = {layer.name: layer.rank for layer in layers}
    loss = in_precision(build.objective.loss, build.options.precision, device_of(build.model))
    begin, rows = 0.0, 0
    with plan.open(build.model) as gradients:
        first = list(islice(windows(build.loader, build.bucket), 1 + TIMED))
        for number, window in enumerate(first if len(first) > 1 else first * 2):
            if number == 1:
                begin = time.perf_counter()
            made = made_of(window, gradients, loss, ranks, build.options.seed)
            float(made.losses.sum())  # waits for the device
            rows += batch_rows(window.batch) if number else 0
    return (time.perf_counter() - begin) / rows


def _gram(layer: LayerEntry, examples: int, memory_limit: int) -> bool:
    return layer.size <= min(examples, GRAM_SIDE) and Gram.needs(layer) <= memory_limit


def _curvature_bytes(layer: LayerEntry, examples: int, options: CurvatureOptions, memory_limit: int) -> int:
    """Of one layer's sums and what its directions are found in, as `lorif_core.curvature` holds them."""
    if is_dual(layer, examples, memory_limit):
        return DUAL_BYTES * examples**2
    if _gram(layer, examples, memory_limit):
        return Gram.needs(layer)
    return RandomizedSVD.needs(layer, options.rank + OVERSAMPLING)


def _kept_bytes(layer: LayerEntry, examples: int, options: CurvatureOptions, memory_limit: int) -> int:
    """Of one layer's inverse on disk."""
    dual, limit = is_dual(layer, examples, memory_limit), min(layer.size, examples)
    exact = dual or _gram(layer, examples, memory_limit)
    rank = options.rank_of(limit) if exact else min(options.rank, limit)
    if not dual or not rank:
        return 4 * rank * (layer.size + 1)  # V, S^2
    number = 8 if examples <= EXACT_SIDE else 4
    return number * (2 * rank * examples + rank + examples)  # M, C, S^2, outside


def _curvature_flops(
    layer: LayerEntry, examples: int, options: CurvatureOptions, memory_limit: int, whole: bool
) -> float:
    """Multiplications and additions of the products; a Cholesky factor (`whole`), or the eigenvectors, of a Gram matrix."""
    if whole or is_dual(layer, examples, memory_limit):
        return 2.0 * examples**2 * layer.numbers + (1 / 3 if whole else 10.0) * examples**3
    if _gram(layer, examples, memory_limit):
        return 2.0 * examples * layer.size**2 + 10.0 * layer.size**3
    return 4.0 * (POWER_ITERATIONS + 2) * examples * layer.size * (options.rank + OVERSAMPLING)


def _matrix_rate(device: torch.device) -> float:
    """Float operations a second of a matrix product: of several, the one that was disturbed least."""
    matrix = torch.rand(SIDE, SIDE, device=device)
    best = 0.0
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        float((matrix @ matrix).sum())
        best = max(best, 2.0 * SIDE**3 / (time.perf_counter() - begin))
    return best
