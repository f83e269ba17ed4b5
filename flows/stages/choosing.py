"""Stage choose: the selection within the budget, what the controls would choose, and what speaks for the rows shown.

Axes: N rows of the pool, Q target rows that choose.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from torch import nn

from curation.data import ExampleData
from curation.data.contents import lengths_of, texts_of
from curation.errors import DataError
from curation.examples import write_parquet_atomic
from curation.models.embedding import embeddings
from curation.selection.bias import bias
from curation.selection.budget import Budget
from curation.selection.checkpoints import Checkpoint
from curation.selection.controls import bm25, loss, random_scores, similarity
from curation.selection.factor_vectors import factor_vectors
from curation.selection.harmful import harmful, harmful_table
from curation.selection.pairs import pair_scores
from curation.selection.pool import Best, Pool
from curation.selection.strategies import Selection, Strategy, TopK
from flows.files import digest_of
from flows.stages.aggregating import allowed_rows, index_places, read_best
from flows.stages.common import Arguments, Output, Progress, device, open_data
from flows.stages.scorers import layer_weights, open_scorers
from flows.stages.strategies import budget_of, needs_embeddings, strategy_of
from flows.stages.targeting import Targets, open_targets, pool_columns
from flows.stages.weighing import tokens_of
from lorif_core import LoRIF
from lorif_core.norms import gradient_norms

RANDOM = "random"


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Choose from the rows that ``excluded`` leaves, by ``scores`` and ``best``.

    Returns:
        ``values``: ``rows`` and ``tokens`` chosen, ``digests`` (name -> digest of the choice), ``harmful`` (rows that hurt the
        target) and ``bias`` (`_bias`); files ``rows`` (those selected, by rank, as the user's table has them), ``harmful``,
        ``scores`` (a column a way to score), ``shown`` (``position``, ``target``, ``score``: what target rows say of the rows on
        the page) and a table for each name: ``selected`` (``example_id``, ``rank``, ``score``, ``weight``, ``reason``,
        ``strategy``), and those of the controls; ``random-SEED`` is drawn anew for each fine-tuning.
    """
    data, options = open_data(arguments), arguments["strategy"]
    targets, strategy, budget = open_targets(arguments, data), strategy_of(arguments), budget_of(arguments)
    scorers = open_scorers(arguments, data, progress)
    attributor, model = scorers[-1].attributor, scorers[-1].attributor.model
    progress("rows of the pool", 0, len(data.train_dataset))
    embedded = _embedded(arguments, data, model)
    pool = _pool(arguments, data, targets)
    if "vectors" in strategy.needs:
        by_factors = options["vectors"] == "factors"
        pool = replace(pool, vectors=_factors(attributor, data) if by_factors else embedded)
    norms = _norms(attributor, data)
    names = data.examples.filter(split="train")["example_id"]
    mean = pl.read_parquet(arguments["scores_file"])["mean"].to_numpy()
    hurting = harmful(mean)
    write_parquet_atomic(harmful_table(hurting, names, mean), folder / "harmful.parquet")
    helping = pool.allowed.copy()
    if arguments["exclude_harmful"]:
        helping[hurting] = False
    # The controls choose from all rows: what hurts the target is known by influence only.
    chosen = {"selected": _selected(strategy, replace(pool, allowed=helping), budget, options["seed"], pool)}
    scores = {"score": pool.scores, "mean": mean}
    for control in arguments["controls"]:
        for title, seed in _draws(control, arguments["seeds"]):
            scores[title] = _control_scores(control, seed, arguments, data, targets, attributor, embedded)
            # The controls get as much as the selection has.
            chosen[title] = TopK().select(replace(pool, scores=scores[title]), budget, 0)
    train = data.examples.with_row_index("row").filter(split="train")["row"]
    write_parquet_atomic(data.table[train.gather(chosen["selected"].rows)], folder / "rows.parquet")
    for title, selection in chosen.items():
        name = options["name"] if title == "selected" else title
        write_parquet_atomic(_table(selection, names, name), folder / f"{title}.parquet")
    frame = pl.DataFrame({"example_id": names, **scores}).with_columns(length=pl.Series(pool.lengths))
    write_parquet_atomic(frame, folder / "scores.parquet")
    write_parquet_atomic(_shown(arguments, scorers, data, targets, pool), folder / "shown.parquet")
    values = {
        "rows": len(chosen["selected"]),
        "tokens": int(pool.lengths[chosen["selected"].rows].sum()),
        "digests": {
            title: digest_of([pool.ids[row] for row in one.rows] + one.weights.tolist())
            for title, one in chosen.items()
        },
        "harmful": len(hurting),
        "bias": _bias(pool, norms),
    }
    return Output(values, {title: f"{title}.parquet" for title in ("rows", "scores", "shown", "harmful", *chosen)})


def _selected(strategy: Strategy, helping: Pool, budget: Budget, seed: int, pool: Pool) -> Selection:
    """The selection from the rows that help.

    Raises:
        DataError: they are fewer than the budget.
    """
    try:
        return strategy.select(helping, budget, seed)
    except DataError as error:
        if not (hurting := len(pool.rows()) - len(helping.rows())):
            raise
        raise DataError([f"{x} (exclude_harmful leaves out {hurting:,} rows)" for x in error.problems]) from error


def _embedded(arguments: Arguments, data: ExampleData, model: nn.Module) -> np.ndarray | None:
    """What the model makes of the pool's rows, float32 [N, D]; None where nothing goes by it."""
    if not needs_embeddings(arguments):
        return None
    return embeddings(model, data.ordered_dataloader("train", arguments["index"]["batch_size"]), device(arguments))


def _factors(attributor: LoRIF, data: ExampleData) -> np.ndarray:
    """Vectors of the pool's gradients, float32 [N, K]."""
    rows = factor_vectors(attributor.store)
    found = np.empty_like(rows)
    found[index_places(attributor, data)] = rows
    return found


def _pool(arguments: Arguments, data: ExampleData, targets: Targets) -> Pool:
    """Everything the strategies see but vectors."""
    return Pool(
        ids=data.train_ids(),
        scores=pl.read_parquet(arguments["scores_file"])["score"].to_numpy().copy(),
        lengths=lengths_of(data),
        best=read_best(arguments["best"], targets),
        columns=pool_columns(data),
        allowed=allowed_rows(data, arguments["excluded"]),
    )


def _draws(control: str, seeds: list[int]) -> list[tuple[str, int]]:
    """(name, seed) of the choices of a control: what is drawn by chance is drawn anew for every fine-tuning."""
    return [(f"{RANDOM}-{seed}", seed) for seed in seeds] if control == RANDOM else [(control, 0)]


def _control_scores(
    control: str,
    seed: int,
    arguments: Arguments,
    data: ExampleData,
    targets: Targets,
    attributor: LoRIF,
    embedded: np.ndarray | None,
) -> np.ndarray:
    """Scores of a control, float32 [N], higher = chosen first."""
    groups = [targets.groups[row] for row in targets.choosing]
    if control == RANDOM:
        return random_scores(len(data.train_dataset), seed)
    if control == "bm25":
        return bm25(texts_of(data) or [], [targets.show(int(row)).text or "" for row in targets.choosing], groups)
    if control == "repsim":
        loader = targets.loader(targets.choosing, arguments["index"]["batch_size"])
        own = embeddings(attributor.model, loader, device(arguments))
        return similarity(cast(np.ndarray, embedded), own, groups)
    losses: np.ndarray = np.empty(len(data.train_dataset), dtype=np.float32)
    losses[index_places(attributor, data)] = attributor.store.losses().numpy()
    # The index has sums over the tokens that a row is asked for.
    return loss(losses / tokens_of(data))


def _table(selection: Selection, names: pl.Series, strategy: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": names.gather(selection.rows),
            "rank": np.arange(1, len(selection) + 1),
            "score": selection.scores,
            "weight": selection.weights,
            "reason": selection.reasons,
            "strategy": [strategy] * len(selection),
        }
    )


def _shown(
    arguments: Arguments, scorers: list[Checkpoint], data: ExampleData, targets: Targets, pool: Pool
) -> pl.DataFrame:
    """For the rows of the highest and of the lowest scores, the score of each for every target row that chooses."""
    most = arguments["report"]["rows"]
    ranked = pool.ranked()
    rows = np.unique(np.concatenate([ranked[:most], ranked[-most:] if most else ranked[:0]]))
    of_pool = np.argsort(index_places(scorers[-1].attributor, data))  # position in the pool -> row of the index
    order = np.argsort(of_pool[rows])
    table = pair_scores(
        scorers,
        targets.loader(targets.choosing, arguments["index"]["batch_size"]) if len(rows) else (),
        of_pool[rows][order],
        normalise=arguments["scores"]["normalise"],
        layer_weights=layer_weights(arguments, scorers),
    )
    return pl.DataFrame(
        {
            "position": np.tile(rows[order], len(table)),
            "target": np.repeat(targets.choosing[: len(table)], len(rows)),
            "score": table.ravel(),
        },
        schema={"position": pl.Int64, "target": pl.Int64, "score": pl.Float32},
    )


def _norms(attributor: LoRIF, data: ExampleData) -> np.ndarray:
    """Lengths of the pool's gradients, float64 [N]."""
    norms: np.ndarray = np.empty(len(data.train_dataset))
    norms[index_places(attributor, data)] = gradient_norms(attributor.store).numpy()
    return norms


def _bias(pool: Pool, norms: np.ndarray) -> dict[str, float | None]:
    """What the scores may be of instead: Spearman's with lengths and gradients' norms, and how many groups share a best row."""
    rows = pool.rows()
    best = cast(Best, pool.best)
    found = bias(best.rows, pool.scores[rows], pool.lengths[rows], norms[rows])
    return {"length": found.length, "norm": found.norm, "hub": found.hubs.most, "distinct": found.hubs.distinct}
