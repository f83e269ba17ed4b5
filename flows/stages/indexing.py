"""Stage index: the LoRIF factor store of the training rows and its curvature."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule

from curation.data import CuratedData
from flows.stages.common import Arguments, Output, Progress, open_data, trained_model
from lorif_core import Classification, LoRIF


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Index the training rows under the model in ``checkpoint``; goes on where an interrupted run stopped.

    Returns:
        ``values``: ``rows``, ``bytes_per_row``, ``coverage`` (share of the parameters that is indexed), ``left_out``;
        file ``manifest`` of the index in ``index/``.
    """
    data = open_data(arguments)
    model = trained_model(arguments, data, arguments["checkpoint"])
    options = dict(arguments["index"])
    loader = data.ordered_dataloader("train", options.pop("batch_size"))
    options.pop("path")
    attributor = LoRIF(model, Classification(), **options, progress=progress)
    attributor.fit(loader, folder / "index", ids=data.train_ids())
    manifest = attributor.store.manifest
    return Output(
        {
            "rows": manifest.examples,
            "bytes_per_row": manifest.bytes_per_example,
            "coverage": manifest.coverage,
            "left_out": manifest.left_out,
        },
        {"manifest": "index/manifest.json"},
    )


def open_index(arguments: Arguments, data: CuratedData, progress: Progress) -> tuple[LoRIF, LightningModule]:
    """The attributor of the job's ``index_path``, and its model, whose weights are those of ``checkpoint``."""
    model = trained_model(arguments, data, arguments["checkpoint"])
    return LoRIF.load(arguments["index_path"], model, Classification(), progress=progress), model
