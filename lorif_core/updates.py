"""Curvature of an index after rows were added or removed, without another pass over the rows that stay.

Axes: D a layer's flattened gradient, r curvature rank, m rows added or removed, N rows afterwards.

H ~ V S^2 V^T of the rows so far. Adding rows A [m, D] is an incremental SVD: the r largest directions of V S^2 V^T + A^T A.
Removing them subtracts what of A^T A lies in the span of V, eigenvalues clamped at zero. Lambda follows the exact trace and N.

What is neglected is bounded: `drift` sums the nuclear norms of what updates left out, so that |H - (H as fitted + rows added
- rows removed)|_* <= drift; no score is then off by more than |g| |G_i| drift / lambda^2. What the fit itself left out, as any
truncated SVD does, is not counted, and is the measure: where drift reaches a tenth of what is outside V, scores and those of
a fit of all rows still agree to a rank correlation of about 0.97, at any r (tests/benchmarks/curvature_updates.py), and a
refit is due. A layer with fewer rows than numbers needs them all: it is fitted anew, and has no drift. Nor is any counted
with r = 0: H is lambda I, as it would be of a fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorif_core.blocks import Block
from lorif_core.curvature import MEMORY_LIMIT, averaged, fit_curvature
from lorif_core.damping import damping_of
from lorif_core.errors import StoreError
from lorif_core.inverse import LayerInverse, PrimalInverse
from lorif_core.kept import VERSION, read_curvature, record_of, replace_curvature
from lorif_core.manifest import LayerEntry, Manifest
from lorif_core.options import AUTO, CurvatureOptions
from lorif_core.store import FactorStore

log = logging.getLogger(__name__)

ROWS = 256
"""Rows of one update: the SVD's small side is r + ROWS."""
TINY = 1e-12
"""Eigenvalues below this share of the largest are rounding errors of the small matrix, and dropped."""

Blocks = Callable[[str], Iterator[Block]]
"""The rows added or removed, of a layer, in blocks of at most `ROWS`."""
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Spectrum:
    """V [D, r] orthonormal, S^2 [r], and the nuclear norm of what updates neglected; float64."""

    vectors: Tensor
    values: Tensor
    drift: float = 0.0

    def add(self, rows: Tensor, rank: int) -> Spectrum:
        """The `rank` largest directions of V S^2 V^T + A^T A, for A = `rows` [m, D]."""
        size = len(self.vectors)
        stacked = torch.cat([self.vectors.mT * self.values.sqrt().unsqueeze(1), rows])  # [r + m, D]
        if size <= len(stacked):
            values, vectors = torch.linalg.eigh(stacked.mT @ stacked)  # [D, D]
            values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        else:
            values, weights = torch.linalg.eigh(stacked @ stacked.mT)  # [r + m, r + m]
            kept = values > values[-1] * TINY
            values, weights = values[kept].flip(0), weights[:, kept].flip(1)
            vectors = stacked.mT @ (weights / values.sqrt())[:, :rank]  # [D, r + m] @ [r + m, r] -> [D, r]
        return Spectrum(vectors[:, :rank], values[:rank], self.drift + float(values[rank:].sum()))

    def remove(self, rows: Tensor) -> Spectrum:
        """V S^2 V^T less the part of A^T A within V, no eigenvalue below zero, for A = `rows` [m, D]."""
        if not len(self.values):
            return replace(self, drift=self.drift + float(rows.square().sum()))
        inside = rows @ self.vectors  # [m, D] @ [D, r] -> [m, r]
        values, rotation = torch.linalg.eigh(self.values.diag() - inside.mT @ inside)
        neglected = _nuclear(inside @ self.vectors.mT, rows - inside @ self.vectors.mT)
        neglected -= float(values.clamp_max(0).sum())
        kept = values > self.values.max() * TINY  # a direction that only these rows had is not kept
        vectors, values = self.vectors @ rotation[:, kept].flip(1), values[kept].flip(0)
        return Spectrum(vectors, values, self.drift + neglected)


def update_curvature(
    before: FactorStore,
    after: FactorStore,
    changed: Blocks,
    *,
    added: bool,
    device: torch.device,
    progress: Progress,
    memory_limit: int,
) -> tuple[dict[str, LayerInverse], dict[str, Any]] | None:
    """The curvature of `after`, from that kept beside `before`.

    Args:
        before: the index as it was.
        after: the same with rows added at its end, or removed.
        changed: those rows.
        added: whether they were added.
        device: where products run.
        progress: told ("curvature", layers done, layers).
        memory_limit: bytes of the sums held at once, where a layer is fitted anew.

    Returns:
        The inverse of each layer and the manifest's record of them, fitted anew where what was kept cannot be used; None
        where nothing was kept.
    """
    record = before.manifest.curvature
    if record is None:
        return None
    if record["data"] != before.manifest.data_digest() or record.get("version") != VERSION:
        return fitted_anew(after, device, progress, memory_limit)
    options = CurvatureOptions(**record["options"])
    if options.damping == AUTO:
        log.info("damping='auto' is chosen from all rows: fitting the curvature anew")
        return fitted_anew(after, device, progress, memory_limit)
    try:
        old = read_curvature(before.path, before.manifest, record["damping"], device)
    except StoreError as error:
        log.warning("%s; fitting it anew", error)
        return fitted_anew(after, device, progress, memory_limit)
    unknown = options.damping_rule == "paper" and not options.rank  # it is of directions that are not kept
    anew = [x for x in before.manifest.layers if unknown or not isinstance(old.get(x.name), PrimalInverse)]
    found = fit_curvature(_of_layers(after, anew), options, device, progress, memory_limit) if anew else {}
    traces = record.get("trace", {})
    drifts, outside = dict(record.get("drift", {})), dict(record.get("outside", {}))
    for number, layer in enumerate(before.manifest.layers):
        progress("curvature", number, len(before.manifest.layers))
        inverse, name = old.get(layer.name), layer.name
        if name in found or not isinstance(inverse, PrimalInverse):
            continue
        trace = traces[name] if name in traces else _trace(before.blocks(name, ROWS))
        spectrum = Spectrum(inverse.vectors.double(), inverse.values.double(), drifts.get(name, 0.0))
        rank = options.rank_of(min(layer.size, len(after)))
        for rows in _gathered(changed(name), device):
            if rank:
                spectrum = spectrum.add(rows, rank) if added else spectrum.remove(rows)
            change = float(rows.square().sum())
            trace = trace + change if added else max(trace - change, 0.0)
        drifts[name], outside[name] = spectrum.drift, max(trace - float(spectrum.values.sum()), 0.0)
        count = averaged(options, layer, len(after))
        total = float(spectrum.values[:count].sum()) + _beyond(inverse, options, len(before), layer)
        mean = total / max(count, 1)
        damping = damping_of(options, trace, len(after), layer.size, mean)
        found[name] = PrimalInverse(spectrum.vectors.float().contiguous(), spectrum.values.float(), damping, trace)
    progress("curvature", len(found), len(found))
    new = record_of(after.manifest, options) | {"drift": drifts, "outside": outside}
    return {layer.name: found[layer.name] for layer in before.manifest.layers}, new


def refit(
    path: str | Path,
    device: torch.device | None = None,
    progress: Progress | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> None:
    """Fit the curvature of the index at `path` anew from all rows, with the options it was fitted with.

    Args:
        path: of a finished index.
        device: where products run; the CPU if left out.
        progress: told ("curvature", layers done, layers).
        memory_limit: bytes of the sums a pass over the index may hold.

    Raises:
        StoreError: no index, no curvature beside it, an unfinished append, or another process writes it.
    """
    store = FactorStore.open(path)
    told = progress or (lambda stage, done, total: None)
    found = fitted_anew(store, device or torch.device("cpu"), told, memory_limit)
    if found is None:
        raise StoreError(f"{path} has no curvature yet: the first query fits it")
    replace_curvature(store.path, store.manifest, *found)


def fitted_anew(
    store: FactorStore, device: torch.device, progress: Progress, memory_limit: int
) -> tuple[dict[str, LayerInverse], dict[str, Any]] | None:
    """The curvature of all rows and the manifest's record of it, with the options in its record so far; None without one."""
    if store.manifest.curvature is None:
        return None
    options = CurvatureOptions(**store.manifest.curvature["options"])
    return fit_curvature(store, options, device, progress, memory_limit), record_of(store.manifest, options)


def _nuclear(inside: Tensor, outside: Tensor) -> float:
    """|A^T A - X^T X|_* for A = X + Y, with X = `inside` [m, D] and Y = `outside` [m, D] of orthogonal row spaces.

    It is F^T J F with F = [X; Y] and J = [[0, 1], [1, 1]], whose eigenvalues are those of J between the roots of F F^T.
    """
    root_x, root_y = _root(inside @ inside.mT), _root(outside @ outside.mT)  # [m, m]
    cross = root_x @ root_y
    matrix = torch.cat(
        [torch.cat([torch.zeros_like(cross), cross], 1), torch.cat([cross.mT, root_y @ root_y], 1)]
    )  # [2 m, 2 m]
    return float(torch.linalg.eigvalsh(matrix).abs().sum())


def _root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    return root


def _gathered(blocks: Iterator[Block], device: torch.device) -> Iterator[Tensor]:
    """The rows of blocks [m, D] in float64, about `ROWS` at a time: a purge may take one from each of many shards."""
    waiting: list[Tensor] = []
    for block in blocks:
        waiting.append(block.dense(device).double())
        if sum(map(len, waiting)) >= ROWS:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _of_layers(store: FactorStore, layers: list[LayerEntry]) -> FactorStore:
    manifest: Manifest = store.manifest.with_(layers=layers)
    return FactorStore(store.path, manifest, store.trust)


def _trace(blocks: Iterator[Block]) -> float:
    """The sum of squared gradient norms, where an earlier version fitted the curvature and did not keep it."""
    return sum(float(block.squared_norms().sum()) for block in blocks)


def _beyond(inverse: PrimalInverse, options: CurvatureOptions, examples: int, layer: LayerEntry) -> float:
    """The sum of those the paper's damping averages over beyond the r that are kept: the best guess of it afterwards."""
    if options.damping_rule != "paper" or isinstance(options.damping, str):
        return 0.0
    count = averaged(options, layer, examples)
    total = inverse.damping / options.damping * count
    return max(total - float(inverse.values[:count].double().sum()), 0.0)
