"""Scores of groups of target rows for every row of a pool, stretch by stretch, as the indexes are read.

Axes: Q target rows, G target groups, N pool rows, n rows of a stretch, D = d1 d2 a layer's gradient.

A score is linear in the target's gradient: the mean of a group's scores is the score of the group's mean gradient. So a group
is one query, however many target rows it has, and no table [Q, N] is ever made:

    s(g, i) = mean over q in group g of  <H^-1 g_q, g_i>,   unit-normalised: <H^-1 g_q / |g_q|, g_i> / |g_i|

Of several checkpoints it is the sum, weighed by their learning rates. POSITIVE = proponent: training on row i lowers the
group's loss. Everything is the same, bit for bit, whatever the shards of the index.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curation.selection.checkpoints import Checkpoint
from lorif_core.inverse import identities
from lorif_core.norms import gradient_norms
from lorif_core.objectives import Batch, batch_rows, select_rows
from lorif_core.scoring import prepared, streamed

GROUP_NUMBERS = 2**25
"""Numbers of the groups' gradients held at once: 256 MB in float64; more groups read the index again."""
STRETCH_NUMBERS = 2**22
"""Scores of a stretch, all groups together: 32 MB in float64."""
STRETCH = 65_536
"""Rows of a stretch at most."""


@dataclass(frozen=True)
class Part:
    """Scores of consecutive groups for consecutive rows.

    Attributes:
        groups: the groups scored together, of which a pass over the indexes is.
        first: the first row.
        scores: float64 [G, n].
    """

    groups: range
    first: int
    scores: np.ndarray


def group_scores(
    checkpoints: Sequence[Checkpoint],
    batches: Sequence[Batch],
    places: np.ndarray,
    normalise: bool,
    weights: Mapping[str, float],
) -> Generator[Part]:
    """The scores of all groups: as many together as fit, the pool's rows in order for each of these passes.

    Args:
        checkpoints: with indexes of the same rows in the same order.
        batches: of target rows.
        places: the group of each of them, int [Q], 0 .. G - 1, none left out.
        normalise: divide target and pool gradients by their lengths.
        weights: of layers' parts; 1 where left out.
    """
    groups = int(places.max()) + 1
    numbers = max(sum(layer.size for layer in x.attributor.store.manifest.layers) for x in checkpoints)
    most = max(1, GROUP_NUMBERS // numbers)
    norms = [gradient_norms(x.attributor.store).numpy() if normalise else None for x in checkpoints]
    for start in range(0, groups, most):
        chosen = range(start, min(start + most, groups))
        queries = [_group_gradients(x, batches, places, np.array(chosen), normalise, weights) for x in checkpoints]
        with closing(_stretches(checkpoints, queries, norms)) as parts:
            for first, scores in parts:
                yield Part(chosen, first, scores)


def _group_gradients(
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    places: np.ndarray,
    chosen: np.ndarray,
    normalise: bool,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The mean gradient of each chosen group, per layer [G, d1, d2] float32; rows of other groups are not run.

    Args:
        checkpoint: whose model.
        batches: of target rows.
        places: the group of each of them, int [Q].
        chosen: consecutive groups.
        normalise: divide each row's gradient by its length over all layers first.
        weights: of layers.
    """
    attributor = checkpoint.attributor
    layers, where = attributor.store.manifest.layers, attributor.device
    sums = {x.name: torch.zeros(len(chosen), x.d1, x.d2, dtype=torch.float64, device=where) for x in layers}
    wanted = np.isin(places, chosen)
    ours = torch.from_numpy(places[wanted] - chosen[0]).to(where)
    moments = checkpoint.moments
    parts = _rows(batches, wanted)
    gradients = attributor.gradients(parts) if moments is None else moments.gradients(attributor, parts)
    start = 0
    with closing(gradients):
        for part in gradients:
            stop = start + len(part[layers[0].name])
            scale = torch.ones(stop - start, dtype=torch.float64, device=where)
            if normalise:
                scale = _inverse(_lengths(part))
            for layer in layers:
                scaled = part[layer.name].double() * scale[:, None, None]
                sums[layer.name].index_add_(0, ours[start:stop], scaled)
            start = stop
    counts = torch.bincount(ours, minlength=len(chosen))[:, None, None]
    return {name: (x / counts * weights.get(name, 1.0)).float() for name, x in sums.items()}


def _lengths(part: Mapping[str, Tensor]) -> Tensor:
    """Of gradients, a matrix [B, d1, d2] a layer: float64 [B]."""
    return torch.stack([x.double().square().sum((1, 2)) for x in part.values()]).sum(0).sqrt()


def _rows(batches: Sequence[Batch], wanted: np.ndarray) -> Iterator[Batch]:
    """The wanted rows of batches, each as large as what is left of it."""
    start = 0
    for batch in batches:
        stop = start + batch_rows(batch)
        rows = np.flatnonzero(wanted[start:stop])
        if len(rows) == stop - start:
            yield batch
        elif len(rows):
            yield select_rows(batch, rows.tolist())
        start = stop


def _stretches(
    checkpoints: Sequence[Checkpoint], queries: Sequence[dict[str, Tensor]], norms: Sequence[np.ndarray | None]
) -> Generator[tuple[int, np.ndarray]]:
    """(first row, scores float64 [G, n] of all checkpoints together) of stretches that cover the pool."""
    count, groups = len(checkpoints[0].attributor.store), len(next(iter(queries[0].values())))
    rows = max(1, min(STRETCH, STRETCH_NUMBERS // groups))
    with ExitStack() as stack:
        streams = []
        for checkpoint, asked in zip(checkpoints, queries, strict=True):
            attributor = checkpoint.attributor
            store, device = attributor.store, attributor.device
            sizes = {layer.name: layer.size for layer in store.manifest.layers}
            inverses = attributor.curvature if checkpoint.moments is None else identities(sizes, device)
            parts = streamed(store, prepared(asked, inverses, len(store)), inverses, device)
            streams.append(_cut(stack.enter_context(closing(parts)), rows, count))
        for first in range(0, count, rows):
            stop = min(first + rows, count)
            total = np.zeros((groups, stop - first))
            for checkpoint, cut, lengths in zip(checkpoints, streams, norms, strict=True):
                part = next(cut) * checkpoint.learning_rate  # [G, n]
                if lengths is not None:
                    part = part * _inverse(torch.from_numpy(lengths[first:stop])).numpy()
                total += part
            yield first, total


def _cut(parts: Iterable[tuple[int, Tensor]], rows: int, count: int) -> Iterator[np.ndarray]:
    """Consecutive parts [G, any] as float64 stretches of `rows`, the last one shorter."""
    held: list[np.ndarray] = []
    have = seen = 0
    for _, part in parts:
        held.append(part.cpu().double().numpy())
        have, seen = have + part.shape[1], seen + part.shape[1]
        while have >= rows or (have and seen == count):
            whole = np.concatenate(held, 1)
            yield whole[:, :rows]
            held = [whole[:, rows:]]
            have = max(0, have - rows)


def _inverse(lengths: Tensor) -> Tensor:
    """1 / lengths; 0 for those of zero, whose gradient has no direction."""
    return torch.where(lengths > 0, 1 / lengths, torch.zeros_like(lengths))
