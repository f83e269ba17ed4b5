"""Stage report: the page, from the files of the stages before."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.data import CuratedData
from curation.models.evaluation import wilson
from curation.report.model import (
    AccuracyChange,
    CleanReport,
    Confusion,
    Curve,
    Distribution,
    Figure,
    Neighbour,
    ReportRow,
    Reproduction,
    Series,
    SignalSummary,
)
from curation.report.render import write
from flows.stages.common import Arguments, Output, Progress, open_labelled, true_labels

CURVES = {"val_accuracy": ("Validation accuracy", "fraction"), "train_loss": ("Training loss", "number")}

SIGNALS = {
    "kernel_loo": "the model's features prefer another label when the row is left out",
    "loo_logits": "its last layer does, when the row is left out",
    "loss": "cross entropy of the model at the label",
    "margin": "likeliest other logit minus the label's",
    "self_influence": "how much the row itself lowers its own loss (LoRIF)",
    "proponent_votes": "its strongest proponents carry another label (LoRIF)",
    "trusted_influence": "the row raises the loss of the validation rows (LoRIF)",
    "rank_average": "mean rank over several signals",
}

NEXT = {  # what a reader can do with the result
    "review": "Nothing was changed. Where you agree with the rows below, run again with decide.action drop or relabel, and with "
    "decide.budget as the number of rows.",
    "edited": "cleaned.parquet beside this page is the table after that, decisions.parquet has every row with its decision and "
    "reason; your own data are as they were. To decide yourself, run again with decide.action review.",
}


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Write ``report.html``.

    Args:
        arguments: beside the configuration ``summary`` (`flows.summary.summarise`), ``command``, ``config_text``,
            ``histories`` (training -> epochs), and the paths ``scores``, ``decisions`` and ``neighbours``.
        folder: where the page is put.
        progress: told nothing; this takes a second.
    """
    data = open_labelled(arguments)
    summary = arguments["summary"]
    scores, decisions = pl.read_parquet(arguments["scores"]), pl.read_parquet(arguments["decisions"])
    report = CleanReport(
        title=arguments["report"]["title"] or summary["name"],
        created_at=datetime.datetime.now(datetime.UTC).astimezone(),
        data_name=str(arguments["data"]["init_args"].get("path", arguments["data"]["class_path"])),
        data_digest=summary["digests"]["data"],
        model_name=f"{summary['model']['class_path']}, {summary['model']['parameters']:,} parameters",
        n_examples=summary["n_examples"],
        classes=data.classes,
        decisions=summary["decisions"],
        settings=_settings(arguments),
        found=_found(summary),
        reproduction=reproduction(arguments),
        accuracy=_accuracy(summary),
        truth=_truth(summary),
        rows=_rows(arguments, data, decisions),
        distributions=_distributions(arguments, data, scores, decisions, summary),
        confusion=_confusion(data, decisions),
        curves=_curves(arguments["histories"]),
        signals=_signals(arguments, scores, summary),
    )
    write(report, folder / "report.html")
    return Output({"rows": len(report.rows)}, {"report": "report.html"})


def _settings(arguments: Arguments) -> list[str]:
    signals, decide, train = arguments["signals"], arguments["decide"], arguments["train"]
    how_many = "as many rows were flagged as labels are wrong by estimate"
    if decide["budget"] is not None:
        rows = f"{decide['budget']:,} rows" if decide["budget"] >= 1 else f"{100 * decide['budget']:g} % of the rows"
        how_many = f"the {rows} with the highest scores were flagged"
    elif decide["threshold"] is not None:
        how_many = f"the rows with a score of at least {decide['threshold']} were flagged"
    return [
        f"The signal {signals['use']} decided; {how_many}; the action for them was {decide['action']}.",
        NEXT["review" if decide["action"] == "review" else "edited"],
        "Supporters and opponents are the training rows that speak most for and against the suggested label.",
        f"Every training took {train['max_epochs']} epochs with seed {train['seed']} on {train['accelerator']}.",
    ]


def _found(summary: Mapping[str, Any]) -> list[Figure]:
    flagged, n = summary["n_flagged"], summary["n_examples"]
    low, high = wilson(flagged, n)
    return [
        Figure("Rows flagged", flagged, unit="count", note=f"of {n:,} training rows"),
        Figure("Share flagged", flagged / n, low, high, "fraction"),
        Figure("Wrong labels, by estimate", summary["estimated_errors"], unit="count"),
        Figure("Score from which rows are flagged", summary["threshold"]),
    ]


def _accuracy(summary: Mapping[str, Any]) -> AccuracyChange | None:
    if summary["accuracy_after"] is None:
        return None

    def figure(name: str, key: str, unit: Any) -> Figure:
        low, high = summary[f"{key}_interval"]
        return Figure(name, summary[key], low, high, unit)

    return AccuracyChange(
        figure("Accuracy before", "accuracy_before", "fraction"),
        figure("Accuracy after", "accuracy_after", "fraction"),
        figure("Difference", "accuracy_difference", "difference"),
        summary["n_validation"],
    )


def _truth(summary: Mapping[str, Any]) -> list[Figure]:
    """How good the flags are, where it is known which labels are wrong."""
    planted, flagged, hits = summary["n_planted"], summary["n_flagged"], summary["n_flagged_planted"]
    if not planted:
        return []
    figures = [Figure("Wrong labels that were flagged", hits / planted, *wilson(hits, planted), "fraction")]
    if flagged:
        note = f"{hits:,} of {flagged:,}"
        figures.insert(
            0, Figure("Flagged rows that are wrong", hits / flagged, *wilson(hits, flagged), "fraction", note)
        )
    low, high = summary["average_precision_interval"] or (None, None)
    note = f"of {planted:,} wrong labels"
    return [*figures, Figure("Average precision", summary["average_precision"], low, high, note=note)]


def _rows(arguments: Arguments, data: CuratedData, decisions: pl.DataFrame) -> list[ReportRow]:
    """The worst flagged rows beside their strongest supporters and opponents."""
    names, labels, truth = data.train_ids(), data.train_labels(), true_labels(data)
    shown = decisions.with_row_index("position").filter(pl.col("decision") != "keep")
    shown = shown.sort("score", descending=True, nulls_last=True, maintain_order=True).head(arguments["report"]["rows"])
    neighbours = pl.read_parquet(arguments["neighbours"])

    def beside(position: int, supports: bool) -> list[Neighbour]:
        score = pl.col("score")
        mine = neighbours.filter((pl.col("position") == position) & (score > 0 if supports else score < 0))
        mine = mine.sort("score", descending=supports, maintain_order=True).head(arguments["report"]["examples"])
        return [
            Neighbour(names[i], data.classes[labels[i]], value, data.show(i))
            for i, value in mine.select("neighbour", "score").iter_rows()
        ]

    return [
        ReportRow(
            example_id=row["example_id"],
            label=row["label"],
            suggested_label=row["suggested_label"],
            score=row["score"],
            decision=row["decision"],
            reason=row["reason"],
            payload=data.show(row["position"]),
            supporters=beside(row["position"], True),
            opponents=beside(row["position"], False),
            true_label=None if truth is None else truth[row["position"]],
        )
        for row in shown.iter_rows(named=True)
    ]


def _distributions(
    arguments: Arguments, data: CuratedData, scores: pl.DataFrame, decisions: pl.DataFrame, summary: Mapping[str, Any]
) -> list[Distribution]:
    truth = true_labels(data)
    wrong = None if truth is None else (truth != data.examples.filter(split="train")["label"]).to_numpy()
    flagged = (decisions["decision"] != "keep").to_numpy()
    use = arguments["signals"]["use"]
    return [
        Distribution(name, scores[name].to_numpy(), flagged, summary["threshold"] if name == use else None, wrong)
        for name in _ordered(use, scores)
    ]


def _confusion(data: CuratedData, decisions: pl.DataFrame) -> Confusion:
    codes = {label: code for code, label in enumerate(data.classes)}
    counts = np.zeros((len(codes), len(codes)), dtype=np.int64)
    flagged = decisions.filter((pl.col("decision") != "keep") & pl.col("suggested_label").is_not_null())
    for given, suggested in flagged.select("label", "suggested_label").iter_rows():
        counts[codes[given], codes[suggested]] += 1
    return Confusion(data.classes, counts, np.bincount(data.train_labels(), minlength=len(codes)))


def _curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Curve]:
    names = {"train": "before", "retrain": "after"}
    curves = []
    for key, (metric, unit) in CURVES.items():
        series = [
            Series(names[training], [epoch["epoch"] for epoch in epochs], [epoch[key] for epoch in epochs])
            for training, epochs in histories.items()
        ]
        if series:
            curves.append(Curve(metric, series, unit))  # type: ignore[arg-type]
    return curves


def _signals(arguments: Arguments, scores: pl.DataFrame, summary: Mapping[str, Any]) -> list[SignalSummary]:
    use = arguments["signals"]["use"]
    return [
        SignalSummary(
            name=name,
            description=SIGNALS[name],
            average_precision=summary["signals"].get(name),
            correlation=scores.select(pl.corr(name, use, method="spearman")).item(),
            default=name == use,
        )
        for name in _ordered(use, scores)
    ]


def _ordered(use: str, scores: pl.DataFrame) -> list[str]:
    """The signals' columns, the deciding one first."""
    return [use, *(name for name in scores.columns if name not in ("example_id", use))]


def reproduction(arguments: Arguments) -> Reproduction:
    """What a page says of how to get the same again, from the arguments of its stage."""
    summary = arguments["summary"]
    return Reproduction(
        command=arguments["command"],
        config_yaml=arguments["config_text"],
        seeds=summary["seeds"],
        digests=summary["digests"],
        files=summary["files"],
        versions=summary["versions"],
        seconds=summary["seconds"],
        mlflow_run_id=summary["mlflow_run_id"],
        mlflow_tracking_uri=summary["mlflow_tracking_uri"],
    )
