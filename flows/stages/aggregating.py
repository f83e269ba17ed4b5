"""Stage aggregate: the score of every row of the pool for the target, from the index. POSITIVE = training on it helps.

Axes: N rows of the pool, G target groups, k rows kept a group.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from curation.data import ExampleData
from curation.data.contents import lengths_of
from curation.errors import ModelError
from curation.examples import write_parquet_atomic
from curation.selection.aggregate import aggregate
from curation.selection.pool import Best, Pool
from flows.stages.common import Arguments, Output, Progress, open_data
from flows.stages.scorers import layer_weights, open_scorers
from flows.stages.strategies import budget_of, strategy_of
from flows.stages.targeting import Targets, open_targets
from lorif_core import LoRIF

HUB_ROWS = 10
"""Rows kept of each target group where only their hub-ness is asked about."""


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Score the pool under the ``checkpoints`` and their indexes; of the best are no ``excluded`` rows.

    Returns:
        Files ``scores`` (``example_id``, ``score``, ``mean``: over the target groups, in pool order) and ``best`` (``group``,
        ``position``, ``score``: the strongest rows of each target group, strongest first).
    """
    data, options = open_data(arguments), arguments["scores"]
    targets = open_targets(arguments, data)
    scorers = open_scorers(arguments, data, progress)
    places = index_places(scorers[-1].attributor, data)
    allowed = allowed_rows(data, arguments["excluded"])
    found = aggregate(
        scorers,
        targets.loader(targets.choosing, arguments["index"]["batch_size"]),
        [targets.groups[row] for row in targets.choosing],
        how=options["how"],
        k=_kept(arguments, data, allowed),
        normalise=options["normalise"],
        layer_weights=layer_weights(arguments, scorers),
        allowed=allowed[places],
        progress=lambda done, total: progress("scores, row", done, total),
    )
    scores, mean = (np.empty(len(places), dtype=np.float32) for _ in range(2))
    scores[places], mean[places] = found.scores, found.mean
    ids = data.examples.filter(split="train")["example_id"]
    table = pl.DataFrame({"example_id": ids, "score": scores, "mean": mean})
    write_parquet_atomic(table, folder / "scores.parquet")
    groups, kept = found.best.groups, found.best.rows.shape[1]
    best = pl.DataFrame(
        {
            "group": np.repeat(np.array(groups, dtype=object), kept).tolist(),
            "position": places[found.best.rows.ravel()],
            "score": found.best.scores.ravel(),
        },
        schema={"group": pl.String, "position": pl.Int64, "score": pl.Float32},
    )
    write_parquet_atomic(best, folder / "best.parquet")
    return Output({"rows": len(scores)}, {"scores": "scores.parquet", "best": "best.parquet"})


def allowed_rows(data: ExampleData, excluded: str) -> np.ndarray:
    """Which rows of the pool can be chosen, bool [N]: those that are not in the table at ``excluded``."""
    allowed: np.ndarray = np.ones(len(data.train_dataset), dtype=bool)
    allowed[pl.read_parquet(excluded)["position"].to_numpy()] = False
    return allowed


def _kept(arguments: Arguments, data: ExampleData, allowed: np.ndarray) -> int:
    """Rows kept of each target group: as many as the budget may take, where a strategy serves the groups in turn."""
    if "best" not in strategy_of(arguments).needs and arguments["scores"]["how"] != "round_robin":
        return HUB_ROWS
    nothing: np.ndarray = np.zeros(len(allowed), dtype=np.float32)
    return budget_of(arguments).most(Pool(data.train_ids(), nothing, lengths_of(data), allowed=allowed))


def read_best(path: str, targets: Targets) -> Best:
    """What the stage wrote of the groups of ``targets``."""
    frame = pl.read_parquet(path)
    groups = frame["group"].unique(maintain_order=True).to_list()
    shape = (len(groups), len(frame) // len(groups))
    rows, scores = (frame[name].to_numpy().reshape(shape) for name in ("position", "score"))
    counts = Counter(targets.groups[row] for row in targets.choosing)
    return Best(groups, rows, scores, np.array([counts[name] for name in groups]))


def index_places(attributor: LoRIF, data: ExampleData) -> np.ndarray:
    """Position in the pool of each row of the index, int64 [N]: an index that grew has its rows in another order.

    Raises:
        ModelError: it is not of the pool's rows.
    """
    known = attributor.store.ids()
    places = {name: place for place, name in enumerate(data.train_ids())}
    missing = [name for name in known if name not in places]
    if missing or len(known) != len(places):
        raise ModelError(
            f"the index has {len(known):,} rows, {len(missing):,} of them not in the pool of {len(places):,}: build it anew"
        )
    return np.array([places[name] for name in known], dtype=np.int64)
