"""What the score stage asks of the index, by one process or in shares by several: the same figures.

Axes: N training rows, V validation rows, k neighbours, D numbers of a row's projected gradients, W workers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from curation.data import CuratedData
from flows.stages import crew
from flows.stages.common import Arguments, Progress, open_labelled
from flows.stages.indexing import open_index
from flows.stages.neighbours import strongest
from flows.stages.steps import Share, Step
from lorif_core import FactorStore, LoRIF
from lorif_core.atomic import write_tensors
from lorif_core.options import AUTO, RANK
from lorif_core.shared_rows import self_influence_of_share

logger = logging.getLogger(__name__)

TABLE_NUMBERS = 2**26
"""Scores of validation rows against training rows held at once."""
SHARED_FROM = 1e12
"""Multiplications from which further processes are worth starting: a minute of one core, where they take a quarter of one."""

Found = Mapping[str, Tensor]


def influence(
    arguments: Arguments, folder: Path, attributor: LoRIF, data: CuratedData, progress: Progress
) -> dict[str, Tensor]:
    """What the signals of the job need of the index.

    Returns:
        Of those that are asked for: ``self_influence`` float64 [N]; ``proponents`` int64 [N, k] and their
        ``proponent_scores`` float64 [N, k], strongest first; ``trusted_influence`` float64 [N], the mean attribution to the
        validation rows, positive = the row helps them.
    """
    if not shared(arguments, attributor.store, len(data.validation_dataset)):
        return _merged([of_share(arguments, attributor, data, 0, 1)], len(data.validation_dataset))
    workers = crew.workers(arguments)
    crew.run("score", arguments, folder, progress)
    files = [_file(folder, worker, workers) for worker in range(workers)]
    found = _merged([load_file(file) for file in files], len(data.validation_dataset))
    for file in files:
        file.unlink()
    return found


def shared(arguments: Arguments, store: FactorStore, queries: int) -> bool:
    """Whether several processes are to do it: where they are asked for, and there is enough to do for each to start."""
    wanted, rows = arguments["signals"], len(store)
    asked = rows * wanted["proponent_votes"] + queries * wanted["trusted_influence"]
    rank = arguments["index"]["curvature_rank"]
    directions = 2 * (RANK if rank == AUTO else rank) * wanted["self_influence"]
    cost = float(rows) * sum(layer.size for layer in store.manifest.layers) * (asked + directions)
    if not crew.wanted(arguments):
        return False
    worth = bool(cost >= SHARED_FROM)
    logger.info(
        "%d queries over %d rows: %.2g multiplications, %s %.2g: %s",
        *(asked, rows, cost, "no fewer than" if worth else "fewer than", SHARED_FROM),
        f"shared by {crew.workers(arguments)} processes" if worth else "done by this process",
    )
    return worth


def of_share(
    arguments: Arguments, attributor: LoRIF, data: CuratedData, worker: int, workers: int
) -> dict[str, Tensor]:
    """One worker's share: some of the index's shards, of the training rows' neighbours, and of the validation rows."""
    wanted, size = arguments["signals"], arguments["index"]["batch_size"]
    found = {}
    if wanted["self_influence"]:
        found["self_influence"] = self_influence_of_share(attributor, worker, workers).double()
    if wanted["proponent_votes"]:
        rows = _own(len(data.train_dataset), worker, workers)
        loader = DataLoader(Subset(data.train_dataset, rows), batch_size=size)
        near = strongest(attributor, loader, torch.tensor(rows).numpy(), wanted["neighbours"], largest=True)
        found["proponents"], found["proponent_scores"] = torch.from_numpy(near.rows), torch.from_numpy(near.scores)
    if wanted["trusted_influence"]:
        rows = _own(len(data.validation_dataset), worker, workers)
        found["trusted_influence"] = _total_influence(attributor, data, rows, size)
    return found


def _merged(parts: Sequence[Found], queries: int) -> dict[str, Tensor]:
    """All of it, from the shares of every worker in their order."""
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "trusted_influence"}
    if "trusted_influence" in parts[0]:
        found["trusted_influence"] = torch.stack([part["trusted_influence"] for part in parts]).sum(0) / queries
    return found


def _total_influence(attributor: LoRIF, data: CuratedData, rows: list[int], batch_size: int) -> Tensor:
    """Attribution of each training row to some validation rows, summed, float64 [N]."""
    total = torch.zeros(len(data.train_dataset), dtype=torch.float64)
    most = max(1, TABLE_NUMBERS // len(total))
    for first in range(0, len(rows), most):
        queries = DataLoader(Subset(data.validation_dataset, rows[first : first + most]), batch_size=batch_size)
        total += attributor.score(queries).double().cpu().sum(dim=0)  # [V', N] -> [N]
    return total


def _own(count: int, worker: int, workers: int) -> list[int]:
    """Consecutive rows of one worker: as many for each as there are, give or take one."""
    return list(range(count * worker // workers, count * (worker + 1) // workers))


def _file(folder: Path, worker: int, workers: int) -> Path:
    return folder / f"share-{worker}-of-{workers}.safetensors"


def _write_share(share: Share) -> None:
    """Keep one worker's share in the stage's folder, whose inputs never change; nothing where it is there."""
    file = _file(share.folder, share.worker, share.workers)
    if file.exists():
        return
    data = open_labelled(share.arguments)
    attributor, _ = open_index(share.arguments, data, share.progress)
    write_tensors(file, of_share(share.arguments, attributor, data, share.worker, share.workers))


STEPS = (Step("score", _write_share, by_all=True),)
