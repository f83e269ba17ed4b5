"""What each row of a pool does for groups of target rows, in one pass over the index of the pool.

Axes: Q target rows, G target groups, N pool rows, k strongest rows kept a group.

POSITIVE = proponent: training on row i lowers the group's loss (`curation.selection.group_scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np

from curation.errors import DataError
from curation.selection.best import BestRows
from curation.selection.checkpoints import Checkpoint, check_same_rows
from curation.selection.group_scores import group_scores
from curation.selection.pool import Best
from lorif_core import LoRIF
from lorif_core.objectives import Batch, batch_rows

How = Literal["mean", "max", "round_robin"]
HOW: tuple[How, ...] = ("mean", "max", "round_robin")


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
    highest, total = np.full(count, -np.inf), np.zeros(count)
    best = BestRows(names, k, np.ones(count, dtype=bool) if allowed is None else allowed)
    with closing(group_scores(checkpoints, batches, places, normalise, weights)) as parts:
        for part in parts:
            first, stop = part.first, part.first + part.scores.shape[1]
            if not np.isfinite(part.scores).all():
                raise DataError([f"scores of rows {first:,} to {stop - 1:,} are not finite: rebuild the index"])
            np.maximum(highest[first:stop], part.scores.max(0), out=highest[first:stop])
            total[first:stop] += part.scores.sum(0)
            best.add(part.groups, first, part.scores)
            if progress is not None:
                done = part.groups.start * count + len(part.groups) * stop
                progress(done // len(names), count)
    mean = (total / len(names)).astype(np.float32)
    strongest = best.take()
    scores = {"mean": mean, "max": highest.astype(np.float32)}.get(how)
    return Scored(turns(strongest, count) if scores is None else scores, mean, strongest)


def turns(best: Best, count: int) -> np.ndarray:
    """Minus the turn at which each of `count` rows would be taken, float32 [N]: -k where no group has it among its best."""
    k = best.rows.shape[1]
    found = np.full(count, -k, dtype=np.float32)
    np.maximum.at(found, best.rows, -np.arange(k, dtype=np.float32)[None, :])
    return found


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
