"""Self-influence by several workers: each takes some of the shards.

Axes: N training examples, R workers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lorif_core.attributors.lorif import LoRIF
from lorif_core.inverse import FromProducts
from lorif_core.ranks import on_all_ranks
from lorif_core.scoring import self_influence
from lorif_core.store import FactorStore


def self_influence_on_all_ranks(attributor: LoRIF) -> Tensor:
    """`attributor.self_influence`, the shards split over the ranks; every rank calls it and gets all of it.

    Raises:
        StoreError: another rank failed or was lost.
    """
    return torch.cat(on_all_ranks(lambda: self_influence_of_share(attributor, dist.get_rank(), dist.get_world_size())))


def self_influence_of_share(attributor: LoRIF, worker: int, workers: int) -> Tensor:
    """g_i^T H^-1 g_i of the examples of one worker's shards: those of all workers, one after the other, are all N.

    Args:
        attributor: of the same index for every worker.
        worker: which one, 0 .. R - 1.
        workers: R.

    Returns:
        float32 [n] on the CPU, >= 0.
    """
    if workers == 1:
        return attributor.self_influence()
    store, inverses = attributor.store, attributor.curvature
    shards = store.manifest.shards
    first, last = (len(shards) * w // workers for w in (worker, worker + 1))
    manifest = store.manifest.with_(shards=[])
    for shard in shards[first:last]:
        manifest = manifest.with_shard(shard)
    if not manifest.shards:
        return torch.empty(0)
    rows = slice(shards[first].start, shards[first].start + manifest.examples)
    streamed = {name: one for name, one in inverses.items() if not isinstance(one, FromProducts)}
    own = FactorStore(store.path, manifest, store.trust)
    total = self_influence(own, streamed, attributor.device, lambda done: None)
    for inverse in inverses.values():
        if isinstance(inverse, FromProducts):  # of all examples, as few as they are
            total += inverse.self_influence()[rows].cpu()
    return total
