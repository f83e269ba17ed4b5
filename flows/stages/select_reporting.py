"""Stage present: the page of a selection, from the files of the stages before."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.data import CuratedData, ExampleData
from curation.report.model import Curve, Figure, Series
from curation.selection_report.model import Excluded, PoolRow, SelectReport, Share, TargetRow
from curation.selection_report.page import write
from flows.stages.common import Arguments, Output, Progress, open_data
from flows.stages.reporting import reproduction
from flows.stages.targeting import Targets, open_targets, pool_columns

POINTS = 200
"""Points of a curve over the rows of a pool."""
EXCLUDED_ROWS = 12
BIAS = (
    (
        "Correlation of score and length",
        "length",
        "Spearman's; far from zero: long rows, or short ones, lead for their length",
    ),
    (
        "Correlation of score and gradient norm",
        "norm",
        "Spearman's; far from zero: rows with large gradients, or small ones, lead",
    ),
)
HUBS = (
    (
        "Target groups that share one row",
        "hub",
        "hub-ness: the largest share with the same row among their strongest; 100 %: it leads for all",
    ),
    (
        "Different rows among the groups' strongest",
        "distinct",
        "of as many as there could be; 100 %: no two groups share one",
    ),
)
CHOICES = {
    "top_k": "the highest scores",
    "round_robin": "the target groups take turns",
    "facility_location": "rows that stand for the pool",
    "density": "drawn by how crowded their place is",
    "quotas": "the highest scores within shares",
    "importance": "drawn in proportion to their scores",
    "random": "drawn by chance, anew for each seed",
    "bm25": "the most words of the target rows",
    "repsim": "the embeddings most like those of the target rows",
    "loss": "the highest loss",
}
"""What a strategy or a control chooses, in words."""
SOURCES = 12
EPOCHS = {"val_accuracy": "Accuracy on held-out target rows", "val_exact": "Target answers given word for word"}


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Write ``report.html``.

    Args:
        arguments: beside the configuration ``summary`` (`flows.select_summary.summarise`), ``command``, ``config_text``,
            ``histories`` (strategy -> for each seed its epochs), ``report``, and the paths ``selected``, ``scores_file``, ``shown``
            and ``excluded``.
        folder: where the page is put.
        progress: told nothing; this takes a second.
    """
    data = open_data(arguments)
    summary, targets = arguments["summary"], open_targets(arguments, data)
    scores, selected = pl.read_parquet(arguments["scores_file"]), pl.read_parquet(arguments["selected"])
    excluded = pl.read_parquet(arguments["excluded"])
    scores = scores.with_row_index("position").with_columns(
        selected=pl.col("example_id").is_in(selected["example_id"].implode()),
        allowed=~pl.col("example_id").is_in(excluded["example_id"].implode()),
    )
    source_name, sources = _sources(data, scores)
    top, bottom = _rows(arguments, data, targets, scores, selected)
    report = SelectReport(
        title=arguments["report"]["title"] or summary["name"],
        created_at=datetime.datetime.now(datetime.UTC).astimezone(),
        data_name=str(arguments["data"]["init_args"].get("path", arguments["data"]["class_path"])),
        data_digest=summary["digests"]["data"],
        model_name=f"{summary['model']['class_path']}, {summary['model']['parameters']:,} parameters",
        strategy=summary["strategy"],
        n_pool=summary["n_pool"],
        n_selected=summary["n_selected"],
        n_target=summary["n_target"],
        n_held_out=summary["n_held_out"],
        settings=_settings(arguments),
        found=_found(summary),
        accuracy=[
            _figure(name, found, "fraction", f"{CHOICES[name]}; ") for name, found in summary["target_accuracy"].items()
        ],
        advantage=[_figure(name, found, "difference") for name, found in summary["target_advantage"].items()],
        source_name=source_name,
        sources=sources,
        curves=[_of_scores(scores), *_by_length(scores)],
        learning=_learning(arguments["histories"], summary["strategy"]),
        excluded=summary["excluded"],
        excluded_rows=[
            Excluded(*row) for row in excluded.head(EXCLUDED_ROWS).select("example_id", "reason", "like").iter_rows()
        ],
        top=top,
        bottom=bottom,
        reproduction=reproduction(arguments),
    )
    write(report, folder / "report.html")
    return Output({"rows": len(top) + len(bottom)}, {"report": "report.html"})


def _settings(arguments: Arguments) -> list[str]:
    summary, scores, strategy = arguments["summary"], arguments["scores"], arguments["strategy"]
    (kind, amount), *_ = ((name, value) for name, value in arguments["budget"].items() if value is not None)
    budget = f"{100 * amount:g} % of the pool's rows" if kind == "share" else f"{amount:,} {kind}"
    groups = summary["target_groups"]
    sentences = [
        f"Rows were scored by {_scored(scores, summary['checkpoints'])}, {scores['how'].replace('_', ' ')} over "
        f"{len(groups):,} target "
        f"group{'s' if len(groups) > 1 else ''}{', gradients scaled to length one' if scores['normalise'] else ''}.",
        f"{strategy['name']} chose within a budget of {budget}, seed {strategy['seed']}.",
    ]
    if summary["steps"] is not None:
        seeds = ", ".join(map(str, summary["seeds"]["fine_tune"]))
        sentences.append(f"Every fine-tuning took {summary['steps']:,} optimizer steps, with the seeds {seeds}.")
    return sentences


def _scored(scores: Mapping[str, Any], checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """By what rows were scored."""
    parts = ["Adam's steps (LESS)" if scores["adam"] else "LoRIF"]
    if len(checkpoints) > 1:
        states = ", ".join(f"{x['epoch']} (learning rate {x['learning_rate']:.3g})" for x in checkpoints)
        parts.append(f"summed over the states of the warm-up after the epochs {states}")
    if scores["layer_weights"]:
        parts.append("layers weighed by " + ", ".join(f"{name}: {x:g}" for name, x in scores["layer_weights"].items()))
    return ", ".join(parts)


def _found(summary: Mapping[str, Any]) -> list[Figure]:
    pool = summary["n_pool"]
    figures = [
        Figure("Rows selected", summary["n_selected"], unit="count", note=f"of {pool:,} rows of the pool"),
        Figure("Their tokens", summary["tokens_selected"], unit="count"),
        Figure("Rows excluded before", summary["n_excluded"], unit="count"),
    ]
    if summary["tokens_selected"] == summary["n_selected"]:  # rows without a length
        del figures[1]
    figures.append(
        Figure(
            "Rows that hurt the target",
            summary["n_harmful"],
            unit="count",
            note="a negative mean score; harmful.parquet",
        )
    )
    for name, key, note in BIAS:
        if summary["bias"][key] is not None:
            figures.append(Figure(name, summary["bias"][key], note=note))
    if len(summary["target_groups"]) > 1:
        figures += [Figure(name, summary["bias"][key], unit="fraction", note=note) for name, key, note in HUBS]
    return figures


def _figure(name: str, found: Mapping[str, Any], unit: Any, what: str = "") -> Figure:
    seeds = len(found["by_seed"])
    note = f"{what}mean over {seeds} seeds" if seeds > 1 else f"{what}of one seed"
    return Figure(name, found["mean"], found["low"], found["high"], unit, note)


def _sources(data: ExampleData, scores: pl.DataFrame) -> tuple[str, list[Share]]:
    """Composition by source, or by label where no source is known."""
    columns = pool_columns(data)
    name = next((one for one in ("source", "label") if one in columns.columns), None)
    if name is None:
        return "", []
    counts = (
        columns.select(pl.col(name).cast(pl.String).fill_null("(none)").alias("name"))
        .hstack(scores.select("selected"))
        .group_by("name", maintain_order=True)
        .agg(pl.len().alias("pool"), pl.col("selected").sum())
        .sort("pool", descending=True, maintain_order=True)
    )
    shares = [Share(*row) for row in counts.head(SOURCES).iter_rows()]
    rest = counts.tail(max(0, len(counts) - SOURCES))
    if len(rest):
        shares.append(Share(f"{len(rest):,} others", int(rest["pool"].sum()), int(rest["selected"].sum())))
    return name.capitalize(), shares


def _of_scores(scores: pl.DataFrame) -> Curve:
    """Scores in falling order: of all rows that could be chosen, and of those that were, each by their share of the rows.

    By rank the two would lie on each other wherever some rows between others were chosen.
    """
    series = []
    ranked = scores.filter("allowed").sort("score", descending=True, maintain_order=True)
    for name, part in (("could be chosen", ranked), ("selected", ranked.filter("selected"))):
        rows = _spread(len(part))
        series.append(Series(name, [100 * (row + 1) / len(part) for row in rows], part["score"].gather(rows).to_list()))
    return Curve("Scores, highest first", series, x_label="% of the rows")


def _by_length(scores: pl.DataFrame) -> list[Curve]:
    """Shares of the pool and of the selection up to a length; none where all rows have the same."""
    if scores["length"].n_unique() < 2:
        return []
    series = []
    for name, part in (("pool", scores), ("selection", scores.filter("selected"))):
        lengths = part["length"].sort()
        rows = _spread(len(lengths))
        series.append(Series(name, lengths.gather(rows).to_list(), [(row + 1) / len(lengths) for row in rows]))
    return [Curve("Share of rows up to a length", series, "fraction", "tokens")]


def _spread(count: int) -> list[int]:
    """Evenly spaced positions, the first and the last among them."""
    spaced = np.linspace(0, count - 1, min(count, POINTS)).round().astype(np.int64)
    return [int(row) for row in np.unique(spaced)]


def _learning(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], strategy: str) -> list[Curve]:
    """Means over seeds by epoch; the strategy last, which is drawn as what counts."""
    order = [*(name for name in histories if name != strategy), *(name for name in histories if name == strategy)]
    curves = []
    for key, title in EPOCHS.items():
        series = []
        for name in order:
            if key not in histories[name][0][0]:
                continue
            epochs = [one["epoch"] for one in histories[name][0]]
            means = np.mean([[one[key] for one in history] for history in histories[name]], axis=0)  # [seeds, epochs]
            series.append(Series(name, epochs, means.tolist()))
        if series:
            curves.append(Curve(title, series, "fraction"))
    return curves


def _rows(
    arguments: Arguments, data: ExampleData, targets: Targets, scores: pl.DataFrame, selected: pl.DataFrame
) -> tuple[list[PoolRow], list[PoolRow]]:
    """The rows of the highest and of the lowest scores, beside what target rows say of them."""
    options, shown = arguments["report"], pl.read_parquet(arguments["shown"])
    ranked = scores.filter("allowed").sort("score", descending=True, maintain_order=True).with_row_index("place", 1)
    reasons = dict(selected.select("example_id", "reason").iter_rows())
    columns = pool_columns(data)
    labelled, names = isinstance(data, CuratedData), targets.table["example_id"]

    def beside(position: int, best: bool) -> list[TargetRow]:
        mine = shown.filter(pl.col("position") == position)
        mine = mine.sort("score", descending=best, maintain_order=True).head(options["examples"])
        return [
            TargetRow(names[row], targets.table["label"][row] if labelled else None, score, targets.show(row))
            for row, score in mine.select("target", "score").iter_rows()
        ]

    def row_of(row: dict[str, Any], best: bool) -> PoolRow:
        position = row["position"]
        return PoolRow(
            example_id=row["example_id"],
            label=columns["label"][position] if labelled else None,
            source=str(columns["source"][position]) if "source" in columns.columns else None,
            score=row["score"],
            place=row["place"],
            reason=reasons.get(row["example_id"]),
            payload=data.show(position),
            targets=beside(position, best),
        )

    top = [row_of(row, True) for row in ranked.head(options["rows"]).iter_rows(named=True)]
    bottom = [row_of(row, False) for row in ranked.tail(options["rows"]).reverse().iter_rows(named=True)]
    return top, bottom
