"""What each row of a pool does for groups of target rows, in one pass over the index of the pool.

Axes: Q target rows, G target groups, N pool rows, n rows of a stretch, k strongest rows kept a group, D = d1 d2 a layer's gradient.

A score is linear in the target's gradient: the mean of a group's scores is the score of the group's mean gradient. So a group
is one query, however many target rows it has, and no table [Q, N] is ever made:

    s(g, i) = mean over q in group g of  <H^-1 g_q, g_i>,   unit-normalised: <H^-1 g_q / |g_q|, g_i> / |g_i|

POSITIVE = proponent: training on row i lowers the group's loss. Of several checkpoints the sum, weighed by learning rates.
Everything is the same, bit for bit, whatever the shards of the index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from curation.errors import DataError
from curation.selection.best import BestRows
from curation.selection.checkpoints import Checkpoint, check_same_rows
from curation.selection.pool import Best
from lorif_core import LoRIF
from lorif_core.inverse import identities
from lorif_core.norms import gradient_norms
from lorif_core.objectives import Batch, batch_rows, select_rows
from lorif_core.scoring import prepared, streamed

log = logging.getLogger(__name__)

How = Literal["mean", "max", "round_robin"]
HOW: tuple[How, ...] = ("mean", "max", "round_robin")
GROUP_NUMBERS = 2**25
"""Numbers of the groups' gradients held at once: 256 MB in float64; more groups read the index again."""
STRETCH_NUMBERS = 2**22
"""Scores of a stretch, all groups together: 32 MB in float64."""
STRETCH = 65_536
"""Rows of a stretch at most."""


@dataclass(frozen=True)
class Scored:
    """What the rows of a pool do for the target, in the order of its index; positive = proponent.

    Attributes:
        scores: float32 [N]: over the groups their mean, their maximum, or by turns (see `aggregate`).
        mean: float32 [N]: the mean over the groups; below zero = training on the row raises the target's loss.
        best: the strongest rows of each group.
    """

    scores: np.ndarray
    mean: np.ndarray
    best: Best


def aggregate(
    pool: LoRIF | Sequence[Checkpoint],
    loader: Iterable[Batch],
    groups: Sequence[str],
    *,
    how: How = "max",
    k: int,
    normalise: bool = False,
    layer_weights: Mapping[str, float] | None = None,
    allowed: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Scores of every pool row for the target, streamed shard by shard.

    Args:
        pool: an attributor with an index of the pool, or several checkpoints'.
        loader: batches of target rows, in the order of `groups`; read once a checkpoint.
        groups: of each target row, Q names; a name of its own for each makes every row a group.
        how: over groups `mean`; `max`, so that a row may serve one group only; or `round_robin`: minus the turn at which the row
            would be taken if the groups took turns, 0 first, -k for rows that are among the best of none.
        k: rows kept a group; at least the budget, for groups that take turns.
        normalise: divide target and pool gradients by their lengths: else long rows, and those with a large loss, lead.
        layer_weights: a factor >= 0 for some layers' part of every score (papers/seeds.md S1); 1 where left out.
        allowed: bool [N], in the order of the index: rows that may be among a group's best.
        progress: told rows done and in all.

    Raises:
        DataError: names, numbers and layers that do not fit each other; all of it at once, before anything is computed.
    """
    checkpoints = [Checkpoint(pool)] if isinstance(pool, LoRIF) else list(pool)
    check_same_rows(checkpoints)
    count = len(checkpoints[0].attributor.store)
    weights = dict(layer_weights or {})
    _check(checkpoints, groups, how, k, weights, allowed, count)
    names = list(dict.fromkeys(groups))
    places = np.array([names.index(name) for name in groups])  # [Q]
    batches = list(loader)
    if (rows := sum(batch_rows(batch) for batch in batches)) != len(groups):
        raise DataError([f"the target has {rows:,} rows, but {len(groups):,} of them were given a group"])
    numbers = max(sum(layer.size for layer in x.attributor.store.manifest.layers) for x in checkpoints)
    most = max(1, GROUP_NUMBERS // numbers)
    norms = [gradient_norms(x.attributor.store).numpy() if normalise else None for x in checkpoints]
    highest, total = np.full(count, -np.inf), np.zeros(count)
    best = BestRows(k, np.ones(count, dtype=bool) if allowed is None else allowed)
    for start in range(0, len(names), most):
        chosen = np.arange(start, min(start + most, len(names)))
        queries = [_group_gradients(x, batches, places, chosen, normalise, weights) for x in checkpoints]
        found = best.of(len(chosen))
        for first, part in _stretches(checkpoints, queries, norms):
            stop = first + part.shape[1]
            if not np.isfinite(part).all():
                raise DataError([f"scores of rows {first:,} to {stop - 1:,} are not finite: rebuild the index"])
            np.maximum(highest[first:stop], part.max(0), out=highest[first:stop])
            total[first:stop] += part.sum(0)
            found.add(first, part)
            if progress is not None:
                progress(start // most * count + stop, -(-len(names) // most) * count)
        found.finish()
    mean = (total / len(names)).astype(np.float32)
    strongest = best.take(names)
    scores = {"mean": mean, "max": highest.astype(np.float32)}.get(how)
    return Scored(turns(strongest, count) if scores is None else scores, mean, strongest)


def turns(best: Best, count: int) -> np.ndarray:
    """Minus the turn at which each of `count` rows would be taken, float32 [N]: -k where no group has it among its best."""
    k = best.rows.shape[1]
    found = np.full(count, -k, dtype=np.float32)
    np.maximum.at(found, best.rows, -np.arange(k, dtype=np.float32)[None, :])
    return found


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
                squares = torch.stack([part[x.name].double().square().sum((1, 2)) for x in layers]).sum(0)  # [B]
                scale = _inverse(squares.sqrt())
            for layer in layers:
                scaled = part[layer.name].double() * scale[:, None, None]
                sums[layer.name].index_add_(0, ours[start:stop], scaled)
            start = stop
    counts = torch.bincount(ours, minlength=len(chosen))[:, None, None]
    return {name: (x / counts * weights.get(name, 1.0)).float() for name, x in sums.items()}


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


def _check(
    checkpoints: Sequence[Checkpoint],
    groups: Sequence[str],
    how: str,
    k: int,
    weights: Mapping[str, float],
    allowed: np.ndarray | None,
    count: int,
) -> None:
    """Raise DataError with all that does not fit."""
    layers = {layer.name for x in checkpoints for layer in x.attributor.store.manifest.layers}
    problems = []
    if how not in HOW:
        problems.append(f"how: expected one of {', '.join(HOW)}; got {how!r}")
    if k < 1:
        problems.append(f"k: expected at least one row kept a group, got {k}")
    if not len(groups):
        problems.append("the target has no rows: there is nothing to select for")
    if unknown := sorted(set(weights) - layers):
        problems.append(
            f"layer_weights: the index has no layers {', '.join(unknown)}; it has {', '.join(sorted(layers))}"
        )
    if negative := {name: x for name, x in weights.items() if not x >= 0}:
        problems.append(f"layer_weights: expected factors of at least 0, got {negative}")
    if allowed is not None and len(allowed) != count:
        problems.append(f"the index has {count:,} rows, but allowed is told of {len(allowed):,}: index this pool")
    if problems:
        raise DataError(problems)
