"""Merging the small shards that appends and purges leave: the same rows in fewer files."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from lorif_core.atomic import single_writer
from lorif_core.codecs import row_bytes
from lorif_core.manifest import Manifest, ShardEntry
from lorif_core.remote import checkout
from lorif_core.revisions import begin, commit
from lorif_core.store import FactorStore, shard_rows, write_shard

log = logging.getLogger(__name__)


def compact(path: str | Path) -> int:
    """Merge neighbouring shards of the index at `path` as long as they fit into one; no two neighbours that would remain.

    Rows, their order and the curvature stay bit for bit; a shard that fits with neither neighbour is not touched.

    Args:
        path: of a finished index.

    Returns:
        How many shards were merged into others; 0 when there was nothing to do.

    Raises:
        StoreError: there is no index, it is damaged or unfinished, or another process writes it.
    """
    folder = checkout(path)
    with single_writer(folder):
        manifest = begin(folder)
        groups = _groups(manifest, shard_rows(row_bytes(manifest.layers, manifest.bits)))
        if len(groups) == len(manifest.shards):
            return 0
        store = FactorStore(folder, manifest)
        after = manifest.with_(revision=manifest.revision + 1, shards=[])
        for group in groups:
            if len(group) == 1:
                after = after.with_shard(group[0])
            else:
                spans = [span for shard in group for span in shard.spans]
                recorded = [name for name in group[0].energy if all(name in shard.energy for shard in group)]
                energy = {name: sum(shard.energy[name] for shard in group) for name in recorded}
                after = write_shard(folder, after, _joined(store, group), spans, energy)
        commit(folder, after)
    log.info("merged %d shards of %s into %d", len(manifest.shards), folder, len(groups))
    return len(manifest.shards) - len(groups)


def _groups(manifest: Manifest, most: int) -> list[list[ShardEntry]]:
    groups: list[list[ShardEntry]] = []
    for shard in manifest.shards:
        if groups and sum(one.rows for one in groups[-1]) + shard.rows <= most:
            groups[-1].append(shard)
        else:
            groups.append([shard])
    return groups


def _joined(store: FactorStore, group: list[ShardEntry]) -> dict[str, Tensor]:
    parts: list[dict[str, Tensor]] = []
    for shard in group:
        with store.opened(shard) as file:
            parts.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
