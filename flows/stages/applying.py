"""Stage apply: the user's own table after the decisions."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curation.examples import write_parquet_atomic
from flows.stages.common import Arguments, Output, Progress, open_data


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Drop and relabel as ``decisions`` say; rows to keep or to review stay as they are, the input is not modified.

    Returns:
        ``values``: ``digest`` of the edited data, as training sees them, and ``rows``; file ``cleaned``.
    """
    data = open_data(arguments)
    edited = data.edited(pl.read_parquet(arguments["decisions"]))
    write_parquet_atomic(edited.table, folder / "cleaned.parquet")
    return Output({"digest": edited.digest(), "rows": len(edited.train_dataset)}, {"cleaned": "cleaned.parquet"})
