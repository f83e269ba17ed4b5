"""The rows a training is about when they are chosen, watched on the target rows that are held out."""

from __future__ import annotations

import numpy as np
import polars as pl
from torch.utils.data import Subset

from curation.data import ExampleData
from curation.data.chosen import ChosenRows
from flows.stages.common import Arguments
from flows.stages.targeting import open_targets


def chosen_rows(arguments: Arguments, data: ExampleData) -> ChosenRows:
    """The rows in the file ``chosen.rows`` of the job, in epochs of ``chosen.steps``; every epoch is measured on the target."""
    chosen, targets = arguments["chosen"], open_targets(arguments, data)
    frame = pl.read_parquet(chosen["rows"], columns=["example_id", "weight"])
    places = {name: place for place, name in enumerate(data.train_ids())}
    rows = np.array([places[name] for name in frame["example_id"]], dtype=np.int64)
    held_out = Subset(targets.dataset, targets.measuring.tolist())
    weights = frame["weight"].to_numpy().copy()
    return ChosenRows(data, rows, weights, held_out, targets.digest, chosen["steps"])
