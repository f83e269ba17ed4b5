"""Stage index: the LoRIF factor store of the training rows and its curvature."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lightning import LightningModule

from curation.data import CuratedData
from flows.files import digest_file
from flows.stages.common import Arguments, Output, Progress, open_data, trained_model
from lorif_core import Classification, LoRIF, StoreError
from lorif_core.manifest import MANIFEST, read_manifest

logger = logging.getLogger(__name__)


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Index the training rows under the model in ``checkpoint``; goes on where an interrupted run stopped.

    What that run left is checked first: a damaged part of it would become part of a finished index.

    Returns:
        ``values``: ``rows``, ``bytes_per_row``, ``coverage`` (share of the parameters that is indexed), ``left_out``;
        file ``manifest`` of the index in ``index/``.
    """
    data = open_data(arguments)
    model = trained_model(arguments, data, arguments["checkpoint"])
    options = dict(arguments["index"])
    loader = data.ordered_dataloader("train", options.pop("batch_size"))
    options.pop("path")
    target = folder / "index"
    if (damage := _damage(target)) is not None:
        logger.warning("%s; indexing from the start", damage)
        shutil.rmtree(target)
    attributor = LoRIF(model, Classification(), **options, progress=progress)
    attributor.fit(loader, target, ids=data.train_ids())
    manifest = attributor.store.manifest
    return Output(
        {
            "rows": manifest.examples,
            "bytes_per_row": attributor.store.bytes_per_example,
            "coverage": manifest.coverage,
            "left_out": manifest.left_out,
        },
        {"manifest": "index/manifest.json"},
    )


def open_index(arguments: Arguments, data: CuratedData, progress: Progress) -> tuple[LoRIF, LightningModule]:
    """The attributor of the job's ``index_path``, and its model, whose weights are those of ``checkpoint``."""
    model = trained_model(arguments, data, arguments["checkpoint"])
    return LoRIF.load(arguments["index_path"], model, Classification(), progress=progress), model


def _damage(index: Path) -> str | None:
    """What is wrong with the unfinished index that an interrupted run left; None where it is whole, or not there."""
    if not (index / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(index)
    except StoreError as error:
        return str(error)
    written = {shard.file: shard.sha256 for shard in manifest.shards} | manifest.files
    for name, sha256 in written.items():
        if not (index / name).is_file() or digest_file(index / name) != sha256:
            return f"{index / name} is missing or damaged"
    return None
