"""The curvature of an index by several workers: each fits some of the layers, whose inverses have nothing to do with others'.

Axes: N training examples, D = d1 d2 a layer's flattened gradient, R workers.

    curvature.share-<of what>-<r>-of-<R>-<sha256>.safetensors     beside the index: the inverses of worker r's layers

Every layer is fitted by the code, the seed and the order of rows of one process, so the curvature is that of one process, bit
by bit (where torch has as many threads). What it is of, options and rows, and a digest of the bytes are in a share's name: one
of other options or rows, or a damaged one, is not taken. No manifest lists shares, so the writer that lists the whole
curvature removes them (`lorif_core.revisions.sweep`), as it does what killed workers left.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from lorif_core.atomic import json_digest, write_bytes
from lorif_core.curvature import OVERSAMPLING, POWER_ITERATIONS, fit_curvature, kernel_inverses
from lorif_core.inverse import LayerInverse, PrimalInverse, from_tensors, to_tensors
from lorif_core.kept import record_of
from lorif_core.manifest import LayerEntry
from lorif_core.options import CurvatureOptions
from lorif_core.store import FactorStore

log = logging.getLogger(__name__)

DIGITS = 16
"""Of the digests in a share's name."""
DAMPING, TRACE = "lambda.", "sum."


def write_share(
    store: FactorStore,
    options: CurvatureOptions,
    device: torch.device,
    progress: Callable[[str, int, int | None], None],
    memory_limit: int,
    worker: int,
    workers: int,
) -> None:
    """Fit the layers of one worker, 0 .. R - 1, and keep them beside the index; nothing where they are there.

    Args:
        store: the finished index, in a folder that all workers see.
        options: the same for all workers.
        device: where the products run.
        progress: told ("curvature", layers done, layers of this worker).
        memory_limit: as of `fit_curvature`, for this worker alone.
        worker: which one.
        workers: R.
    """
    name = f"curvature.share-{_subject(store, options)}-{worker}-of-{workers}"
    names = dealt(store.manifest.layers, len(store), options, workers)[worker]
    if not names or any(_read(file) is not None for file in store.path.glob(f"{name}-*.safetensors")):
        return
    found = fit_curvature(store, options, device, progress, memory_limit, set(names))
    figures = {f"{DAMPING}{name}": one.damping for name, one in found.items()}
    figures |= {
        f"{TRACE}{name}": x.trace for name, x in found.items() if isinstance(x, PrimalInverse) and x.trace is not None
    }
    tensors = to_tensors(found) | {key: torch.tensor([x], dtype=torch.float64) for key, x in figures.items()}
    data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    write_bytes(store.path / f"{name}-{_digest(data)}.safetensors", data)


def fit_missing(
    store: FactorStore,
    options: CurvatureOptions,
    device: torch.device,
    progress: Callable[[str, int, int | None], None],
    memory_limit: int,
) -> dict[str, LayerInverse]:
    """The curvature of every layer, of which only what no share beside the index has is fitted; arguments as of `fit_curvature`."""
    found = read_shares(store, options, device)
    names = [layer.name for layer in store.manifest.layers]
    if missing := [name for name in names if name not in found]:
        found |= fit_curvature(store, options, device, progress, memory_limit, missing)
    return {name: found[name] for name in names}


def read_shares(store: FactorStore, options: CurvatureOptions, device: torch.device) -> dict[str, LayerInverse]:
    """The inverses in the shares beside the index that are of these options and its rows; none is read without being checked."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(store.path.glob(f"curvature.share-{_subject(store, options)}-*.safetensors")):
        data = _read(file)
        if data is None:
            log.warning("%s is damaged: its layers are fitted again", file)
            continue
        tensors |= load(data)
    damping, traces = (
        {key.removeprefix(kind): float(value) for key, value in tensors.items() if key.startswith(kind)}
        for kind in (DAMPING, TRACE)
    )
    found = {
        name: replace(one, trace=traces.get(name)) if isinstance(one, PrimalInverse) else one
        for name, one in from_tensors(tensors, damping, device).items()
    }
    return found | kernel_inverses(store, {name: x for name, x in damping.items() if name not in found}, device)


def dealt(layers: list[LayerEntry], examples: int, options: CurvatureOptions, workers: int) -> list[list[str]]:
    """The layers of each worker: the dearest first, each to the one with least to do so far."""
    directions = 2 * (POWER_ITERATIONS + 2) * (options.rank + OVERSAMPLING)

    def cost(layer: LayerEntry) -> int:
        """A row's products: with the other rows (N < D), with itself (G^T G), or with the directions in every pass."""
        return layer.size * min(examples, layer.size, directions)

    names: list[list[str]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for layer in sorted(layers, key=lambda layer: (-cost(layer), layer.name)):
        worker = loads.index(min(loads))
        names[worker].append(layer.name)
        loads[worker] += cost(layer)
    return names


def _subject(store: FactorStore, options: CurvatureOptions) -> str:
    """What a curvature is of."""
    return json_digest(record_of(store.manifest, options))[:DIGITS]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def _read(file: Path) -> bytes | None:
    """A share's bytes; None where they are not what its name says."""
    data = file.read_bytes()
    return data if file.stem.endswith(_digest(data)) else None
