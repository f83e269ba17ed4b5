"""Stage exclude: the pool's rows that must not be chosen, and a slice of the others that the model is warmed up on.

It comes before anything is trained, so that a pool with nothing left to choose is refused at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.data import ExampleData
from curation.data.contents import digest_of_inputs, lengths_of, texts_of
from curation.errors import DataError
from curation.examples import write_parquet_atomic
from curation.selection.content import Content
from curation.selection.decontamination import contaminated
from curation.selection.duplicates import Alike, duplicates
from curation.selection.exclusions import exclusion_table
from curation.selection.pool import Pool
from flows.files import digest_of
from flows.stages.common import Arguments, Output, Progress, open_data
from flows.stages.strategies import budget_of, strategy_of
from flows.stages.targeting import Targets, drawn_order, open_targets, pool_columns


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Find target and evaluation rows in the pool, near-duplicates of them, and rows that are there several times.

    Args:
        arguments: beside the configuration ``rows``, the file of the pool's digests.
        folder: where the files are put.
        progress: told of the rows.

    Returns:
        ``values``: ``excluded`` (reason -> rows), ``excluded_digest`` of the positions, ``allowed`` (rows left), ``slice`` (rows
        of the warm-up) and ``slice_digest``; files ``excluded`` (``example_id``, ``position``, ``kind``, ``reason``, ``like``: id
        of the row it is like, ``similarity``) and ``slice`` (``example_id``, ``weight``).

    Raises:
        DataError: fewer rows are left than the budget asks for.
    """
    data = open_data(arguments)
    targets = open_targets(arguments, data)
    ids = data.train_ids()
    progress("rows of the pool", 0, len(ids))
    excluded = _excluded(arguments, data, targets, pl.read_parquet(arguments["rows"])["inputs"].to_list())
    write_parquet_atomic(excluded, folder / "excluded.parquet")
    allowed: np.ndarray = np.ones(len(ids), dtype=bool)
    allowed[excluded["position"].to_numpy()] = False
    counts = dict(Counter(excluded["kind"].to_list()))
    _check_left(arguments, data, allowed, counts)

    part = slice_of(ids, allowed, arguments["warmup"], arguments["train"]["seed"])
    names = data.examples.filter(split="train")["example_id"]
    write_parquet_atomic(
        pl.DataFrame({"example_id": names.gather(part), "weight": np.ones(len(part))}), folder / "slice.parquet"
    )
    values = {
        "excluded": counts,
        "excluded_digest": digest_of(excluded["position"].to_list()),
        "allowed": int(allowed.sum()),
        "slice": len(part),
        "slice_digest": digest_of([ids[row] for row in part]),
    }
    return Output(values, {name: f"{name}.parquet" for name in ("excluded", "slice")})


def slice_of(ids: list[Any], allowed: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Positions of a random share of the rows allowed, at least one, ascending, int64."""
    rows = np.flatnonzero(allowed)
    order = drawn_order([ids[row] for row in rows], seed)
    return np.sort(rows[order[: max(1, round(share * len(rows)))]])


def _excluded(arguments: Arguments, data: ExampleData, targets: Targets, inputs: list[str]) -> pl.DataFrame:
    """Every row that goes, with the plainest reason for it, in pool order.

    Raises:
        DataError: none would stay.
    """
    ids, texts = data.train_ids(), texts_of(data)
    shown = [targets.show(row).text for row in range(len(targets))]
    held = Content(
        targets.table["example_id"].to_list(),
        [digest_of_inputs(targets.dataset[row], shown[row]) for row in range(len(targets))],
        [text or "" for text in shown] if texts is not None else None,
    )
    same_table = arguments["target"]["data"]["class_path"] is None
    near = Alike(jaccard=arguments["decontaminate"]["near"] or 1.0)
    protected = {"target": held, "evaluation": targets.evaluation}
    gone = contaminated(Content(ids, inputs, texts), protected, near, same_ids=same_table)
    options = arguments["duplicates"]
    if options["remove"]:
        found = {one.row for one in gone}
        left = [row for row in range(len(ids)) if row not in found]
        there = [texts[row] for row in left] if texts is not None else None
        names: list[Any] = [ids[row] for row in left]
        content = Content(names, [inputs[row] for row in left], there)
        same = duplicates(content, Alike(jaccard=options["near"] or 1.0))
        gone += [replace(one, row=left[one.row]) for one in same]
    return exclusion_table(gone, data.examples.filter(split="train")["example_id"])


def _check_left(arguments: Arguments, data: ExampleData, allowed: np.ndarray, counts: dict[str, int]) -> None:
    """Nothing, where the budget can be filled from the rows allowed.

    Raises:
        DataError: it cannot; the text says what went.
    """
    try:
        nothing: np.ndarray = np.zeros(len(allowed), dtype=np.float32)
        pool = Pool(data.train_ids(), nothing, lengths_of(data), allowed=allowed, columns=pool_columns(data))
        problems = strategy_of(arguments).shortfalls(pool, budget_of(arguments).of(pool))
        if problems:
            raise DataError(problems)
    except DataError as error:
        gone = ", ".join(f"{rows:,} as {kind}" for kind, rows in sorted(counts.items()))
        raise DataError([f"{problem} ({gone or 'no'} rows were excluded)" for problem in error.problems]) from error
