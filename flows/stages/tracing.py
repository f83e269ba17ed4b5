"""Stage trace: by what the records would be known in a file, and the data without them."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curation.data.kept_tokens import keeping, learnt, texts_of
from curation.data.questions import Questions
from curation.data.text_tokens import TOKENIZER, TRAINED
from curation.examples import write_parquet_atomic
from curation.unlearning.traces import traces_of
from flows.stages.common import Arguments, Output, Progress, open_data
from lorif_core import FactorStore
from lorif_core.remote import checkout


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Collect the traces of the rows in ``records``, in the data and in the index at ``index_path`` if there is one.

    Returns:
        ``values``: ``traces`` (how many), ``rows`` of the user's table that stay, ``ids`` and ``contents`` (digests) of the
        records; files ``retained`` (the user's table without the records), ``traces``, ``rows`` and ``columns`` (what
        `curation.unlearning.traces` saves), and of questions whose tokenizer was learnt from data ``tokenizer``: one that stands
        for it, without words that only the records need.
    """
    data = open_data(arguments)
    records = pl.read_parquet(arguments["records"])
    stores = [FactorStore.open(checkout(arguments["index_path"]))] if arguments["index_path"] is not None else []
    progress("what the records would be known by", 0, None)
    traces = traces_of(data, records["position"].to_list(), stores)
    traces.save(folder)
    kept = data.edited(pl.read_parquet(arguments["decisions"]))
    write_parquet_atomic(kept.table, folder / "retained.parquet")
    files = {name: f"{name}.parquet" for name in ("retained", "traces", "rows", "columns")}
    if isinstance(kept, Questions) and learnt(arguments["data"]["init_args"].get("tokenizer", TRAINED)):
        keeping(kept.contents.tokenizer, texts_of(kept)).save(folder / TOKENIZER)
        files["tokenizer"] = TOKENIZER
    values = {
        "traces": len(traces),
        "rows": len(kept.table),
        "ids": records["example_id"].to_list(),
        "contents": records["content"].to_list(),
    }
    return Output(values, files)
