"""Stage index: the LoRIF factor store of the training rows and its curvature."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lightning import LightningModule

from curation.data import ExampleData
from flows.files import digest_file
from flows.stages import crew
from flows.stages.common import Arguments, Output, Progress, objective_of, trained_model
from flows.stages.indexed import indexed
from lorif_core import FactorStore, LoRIF, StoreError
from lorif_core.index import PARTS
from lorif_core.manifest import MANIFEST, read_manifest

logger = logging.getLogger(__name__)


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Index the training rows under the model in ``checkpoint``; goes on where an interrupted run stopped.

    What that run left is checked first: a damaged part of it would become part of a finished index. Several processes may
    share the work (`flows.stages.crew`): the rows, and then the layers of the curvature.

    Returns:
        ``values``: ``rows``, ``bytes_per_row``, ``coverage`` (share of the parameters that is indexed), ``left_out``;
        file ``manifest`` of the index in ``index/``.
    """
    target = folder / "index"
    if (damage := _damage(target)) is not None:
        logger.warning("%s; indexing from the start", damage)
        shutil.rmtree(target)
    if crew.wanted(arguments):
        crew.run("index", arguments, folder, progress)
    else:
        attributor, rows = indexed(arguments, progress)
        attributor.fit(rows.loader, target, rows.ids)
    store = FactorStore.open(target)
    manifest = store.manifest
    return Output(
        {
            "rows": manifest.examples,
            "bytes_per_row": store.bytes_per_example,
            "coverage": manifest.coverage,
            "left_out": manifest.left_out,
        },
        {"manifest": "index/manifest.json"},
    )


def open_index(arguments: Arguments, data: ExampleData, progress: Progress) -> tuple[LoRIF, LightningModule]:
    """The attributor of the job's ``index_path``, and its model, whose weights are those of ``checkpoint``."""
    model = trained_model(arguments, data, arguments["checkpoint"])
    limit = arguments["index"]["memory_limit"]
    return LoRIF.load(arguments["index_path"], model, objective_of(data), memory_limit=limit, progress=progress), model


def _damage(index: Path) -> str | None:
    """What is wrong with the unfinished index that an interrupted run left; None where it is whole, or not there."""
    for place in [index, *(file.parent for file in index.glob(f"{PARTS}/*/{MANIFEST}"))]:
        if not (place / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(place)
        except StoreError as error:
            return str(error)
        written = {shard.file: shard.sha256 for shard in manifest.shards} | manifest.files
        for name, sha256 in written.items():
            missing = not (place / name).is_file()
            if missing and place != index:
                continue  # joining has moved it, and looks at its bytes
            if missing or digest_file(place / name) != sha256:
                return f"{place / name} is missing or damaged"
    return None
