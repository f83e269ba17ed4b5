"""Stage decide: what becomes of every row, why, and which training rows speak for it.

Axes: N training rows, F rows that are not kept as they are, k neighbours of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch.utils.data import DataLoader

from curation.data import CuratedData
from curation.examples import write_parquet_atomic
from curation.mislabel import DecisionRule, decide, estimate_errors, loo_probabilities
from flows.stages.common import Arguments, Output, Progress, open_labelled, true_labels
from flows.stages.indexing import open_index
from flows.stages.neighbours import Neighbours, strongest
from lorif_core import LoRIF

RESAMPLES = 200
BOOTSTRAP_ROWS = 50_000


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Decide by the signal the configuration names; explain the rows that are not kept by their neighbours.

    Returns:
        ``values``: counts, and how well the signals find the rows known to be wrong (`measured`); files ``decisions`` and
        ``neighbours`` (``position`` of a row, ``neighbour``, ``score``; positive = speaks for the suggested label).
    """
    data, use = open_labelled(arguments), arguments["signals"]["use"]
    scores = pl.read_parquet(arguments["scores"])
    labels = data.train_labels()
    probabilities = loo_probabilities(np.load(arguments["kernel"], allow_pickle=False), labels)
    options = arguments["decide"]
    budget = options["budget"]
    rule = DecisionRule(signal=use, **options | {"budget": int(budget) if budget and budget >= 1 else budget})
    deciding = (data.train_ids(), labels, data.classes, scores[use].to_numpy(), probabilities, rule)
    decisions = decide(*deciding)

    acted = np.flatnonzero((decisions["decision"] != "keep").to_numpy())
    neighbours = pl.DataFrame(schema={"position": pl.Int64, "neighbour": pl.Int64, "score": pl.Float64})
    if len(acted):
        attributor, _ = open_index(arguments, data, progress)
        supporters, opponents = _explain(attributor, data, decisions, acted, arguments)
        # Only the rows that were acted on have a reason that counts supporters.
        supporting = np.zeros((len(labels), supporters.rows.shape[1]), dtype=np.int64)
        supporting[acted] = np.where(supporters.scores > 0, labels[supporters.rows], -1)
        decisions = decide(*deciding, proponent_labels=supporting[:, : arguments["signals"]["neighbours"]])
        neighbours = pl.concat([_frame(acted, supporters), _frame(acted, opponents)])
    write_parquet_atomic(decisions, folder / "decisions.parquet")
    write_parquet_atomic(neighbours, folder / "neighbours.parquet")
    counts = dict(decisions["decision"].value_counts().iter_rows())
    values = {
        "n_flagged": len(acted),
        "decisions": {name: counts.get(name, 0) for name in ("keep", "drop", "relabel", "review")},
        "estimated_errors": estimate_errors(probabilities, labels),
        "threshold": decisions["threshold"][0],
        **measured(scores, use, acted, data),
    }
    return Output(values, {"decisions": "decisions.parquet", "neighbours": "neighbours.parquet"})


def measured(scores: pl.DataFrame, use: str, acted: np.ndarray, data: CuratedData) -> dict[str, Any]:
    """How well wrong labels were found, where it is known which are; all None where it is not.

    Returns:
        ``n_flagged_planted``, ``precision``, ``recall``, ``average_precision`` of the deciding signal with its
        ``average_precision_interval``, and ``signals``, that of each.
    """
    names = [name for name in scores.columns if name != "example_id"]
    truth = true_labels(data)
    keys = ("n_flagged_planted", "precision", "recall", "average_precision", "average_precision_interval")
    nothing = dict.fromkeys(keys)
    if truth is None:
        return {**nothing, "signals": dict.fromkeys(names)}
    from sklearn.metrics import average_precision_score

    wrong = (truth != data.examples.filter(split="train")["label"]).to_numpy()
    if not wrong.any():
        return {**nothing, "n_flagged_planted": 0, "signals": dict.fromkeys(names)}
    found = int(wrong[acted].sum())
    precision = {name: float(average_precision_score(wrong, scores[name].to_numpy())) for name in names}
    return {
        "n_flagged_planted": found,
        "precision": found / len(acted) if len(acted) else None,
        "recall": found / int(wrong.sum()),
        "average_precision": precision[use],
        "average_precision_interval": precision_interval(wrong, scores[use].to_numpy()),
        "signals": precision,
    }


def precision_interval(wrong: np.ndarray, scores: np.ndarray) -> list[float] | None:
    """95 % bootstrap interval over rows of the average precision; None for more rows than that takes seconds for.

    Args:
        wrong: bool [N], some True.
        scores: float [N], higher = more likely wrong.
    """
    if len(wrong) > BOOTSTRAP_ROWS:
        return None
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(0)
    found: list[float] = []
    while len(found) < RESAMPLES:
        rows = random.integers(len(wrong), size=len(wrong))
        if wrong[rows].any():
            found.append(average_precision_score(wrong[rows], scores[rows]))
    low, high = np.quantile(found, [0.025, 0.975])
    return [float(low), float(high)]


def _explain(
    attributor: LoRIF, data: CuratedData, decisions: pl.DataFrame, acted: np.ndarray, arguments: Arguments
) -> tuple[Neighbours, Neighbours]:
    """Supporters and opponents of the suggested label of each row acted on."""
    codes = {label: code for code, label in enumerate(data.classes)}
    asked = [
        (data.train_dataset[int(row)][0], codes[label])
        for row, label in zip(acted, decisions["suggested_label"].gather(acted).to_list(), strict=True)
    ]
    loader: DataLoader[Any] = DataLoader(asked, batch_size=arguments["index"]["batch_size"])  # type: ignore[arg-type]
    shown = arguments["report"]["examples"]
    supporters = strongest(attributor, loader, acted, max(arguments["signals"]["neighbours"], shown), largest=True)
    return supporters, strongest(attributor, loader, acted, shown, largest=False)


def _frame(asked: np.ndarray, found: Neighbours) -> pl.DataFrame:
    kept = found.rows.shape[1]
    return pl.DataFrame(
        {"position": np.repeat(asked, kept), "neighbour": found.rows.ravel(), "score": found.scores.ravel()},
        schema={"position": pl.Int64, "neighbour": pl.Int64, "score": pl.Float64},
    )
