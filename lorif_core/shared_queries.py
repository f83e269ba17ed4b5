"""Scores of many queries by several workers: each takes some of the queries over the whole index.

Axes: Q queries, N training examples, k best kept, R ranks of the default process group.

Every query's work is done by one rank, as on one process, so the scores are too. Where a few queries meet a large index,
one process reads it as fast as its disk does, and there is nothing to share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lorif_core.attributors.base import Attributor
from lorif_core.loaders import share
from lorif_core.objectives import Batch
from lorif_core.ranks import on_all_ranks
from lorif_core.scoring import TopK


def score_on_all_ranks(attributor: Attributor, loader: Iterable[Batch]) -> Tensor:
    """`attributor.score`, its queries split over the ranks; every rank calls it and gets all scores.

    Args:
        attributor: of the same index on every rank.
        loader: all queries, the same on every rank.

    Returns:
        float32 [Q, N] on the CPU; positive = proponent.

    Raises:
        StoreError: another rank failed or was lost.
    """
    return torch.cat(on_all_ranks(lambda: attributor.score(_own(loader)).cpu()))


def top_k_on_all_ranks(attributor: Attributor, loader: Iterable[Batch], k: int, *, largest: bool = True) -> TopK:
    """`attributor.top_k`, its queries split over the ranks; every rank calls it and gets all of it.

    Raises:
        StoreError: another rank failed or was lost.
    """

    def found() -> Any:
        indices, scores = attributor.top_k(_own(loader), k, largest=largest)
        return indices.cpu(), scores.cpu()

    parts = [part for part in on_all_ranks(found) if len(part[0])]
    if not parts:
        return TopK(torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0))
    return TopK(torch.cat([indices for indices, _ in parts]), torch.cat([scores for _, scores in parts]))


def _own(loader: Iterable[Batch]) -> Iterable[Batch]:
    """This rank's queries."""
    return share(loader, dist.get_rank(), dist.get_world_size())
