"""Stage estimate: what the index of a job will take, before anything is trained or indexed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from flows.stages.common import Arguments, Output, Progress, device, new_model, open_data, trained_model
from flows.stages.indexed import attributor_and_rows


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Run a few batches of the training rows; the model's weights are fresh where none are loaded: the cost is the same.

    Returns:
        ``values``: the fields of `lorif_core.Estimate`.
    """
    data = open_data(arguments)
    given = arguments["model"]["checkpoint"]
    if given is None:
        model = new_model(arguments, data, arguments["train"]["seed"]).to(device(arguments))
    else:
        model = trained_model(arguments, data, given)
    attributor, rows = attributor_and_rows(arguments, data, model, progress)
    return Output(asdict(attributor.estimate(rows.loader)))
