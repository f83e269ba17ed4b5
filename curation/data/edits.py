"""Applying decisions to an example table: which rows stay, and with which label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from curation.errors import DataError
from curation.examples import column_problems, name_rows

DECISIONS = ("keep", "drop", "relabel", "review")


@dataclass(frozen=True)
class Edits:
    """What decisions do to the rows of an example table, in its order.

    Attributes:
        kept: Boolean [rows], False where a row is dropped.
        labels: the labels [rows] after relabelling, of the type they had; dropped rows keep theirs.
    """

    kept: pl.Series
    labels: pl.Series


def dropping(examples: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """Decisions that drop the rows called ``ids``, for any kind of data."""
    label = examples["label"].dtype if "label" in examples.columns else pl.String
    nothing = pl.lit(None, dtype=label).alias("suggested_label")
    return pl.DataFrame({"example_id": ids}).with_columns(pl.lit("drop").alias("decision"), nothing)


def plan_edits(examples: pl.DataFrame, decisions: pl.DataFrame, classes: Sequence[str | int]) -> Edits:
    """Work out what ``decisions`` do to ``examples``.

    Args:
        examples: an example table.
        decisions: columns ``example_id``, ``decision`` and ``suggested_label``, in any order, at most one row an id;
            training rows without one stay as they are, as do those whose decision is keep or review.
        classes: the labels there may be.

    Raises:
        DataError: lists all problems: ids that are no training row (decisions of other data), repeated ids, unknown
            decisions, a relabel without a known suggested label, a class that would be left without training rows.
    """
    decided = _checked(
        examples,
        decisions,
        ("example_id", "decision", "suggested_label"),
        {
            "relabel without a suggested label that is one of the classes": pl.col("decision").eq_missing("relabel")
            & ~pl.col("suggested_label").is_in(list(classes)).fill_null(False)
        },
    )
    rows = examples.select("example_id", "label", "split").join(
        decided.drop("split"), on="example_id", how="left", maintain_order="left"
    )
    kept = rows.select((pl.col("decision") != "drop").fill_null(True)).to_series()
    labels = rows.select(
        pl.when(pl.col("decision") == "relabel").then("suggested_label").otherwise("label").alias("label")
    ).to_series()
    left = set(labels.filter(kept & (rows["split"] == "train")).to_list())
    emptied = [label for label in classes if label not in left]
    if emptied:
        names = ", ".join(repr(label) for label in emptied)
        raise DataError(
            [f"decisions: no training row would be left of class {names}; keep some, or send those rows to review"]
        )
    return Edits(kept, labels)


def plan_drops(examples: pl.DataFrame, decisions: pl.DataFrame) -> pl.Series:
    """Which rows of ``examples`` stay, Boolean [rows], where rows have no label that could change.

    Args:
        examples: columns ``example_id`` and ``split``.
        decisions: columns ``example_id`` and ``decision``, otherwise as for :func:`plan_edits`.

    Raises:
        DataError: lists all problems: ids that are no training row, repeated ids, unknown decisions, relabels; or no training
            row would be left.
    """
    relabel = {"relabel: these rows have no label; drop or keep them": pl.col("decision").eq_missing("relabel")}
    decided = _checked(examples, decisions, ("example_id", "decision"), relabel)
    dropped = decided.filter(pl.col("decision") == "drop")["example_id"]
    kept = ~examples["example_id"].is_in(dropped.implode())
    if not (kept & (examples["split"] == "train")).any():
        raise DataError(["decisions: no training row would be left; keep some"])
    return kept


def _checked(
    examples: pl.DataFrame, decisions: pl.DataFrame, columns: Sequence[str], further: Mapping[str, pl.Expr]
) -> pl.DataFrame:
    """``columns`` of ``decisions`` in the types of ``examples``, and the split of each row.

    Raises:
        DataError: lists all problems: those every data set has and the ``further`` ones, problem -> rows that have it.
    """
    where = "decisions"
    problems = column_problems(decisions, columns, where)
    if problems:
        raise DataError(problems)
    decided = _as_typed(decisions.select(columns), examples)
    decided = decided.join(examples.select("example_id", "split"), on="example_id", how="left")
    bad = {
        "no training row has this id; were the decisions made on other data?": (pl.col("split") != "train").fill_null(
            True
        ),
        "more than one decision for this id": pl.col("example_id").is_duplicated(),
        f"decision is none of {', '.join(DECISIONS)}": ~pl.col("decision").is_in(DECISIONS).fill_null(False),
        **further,
    }
    for problem, condition in bad.items():
        ids = decided.filter(condition)["example_id"].unique(maintain_order=True).to_list()
        if ids:
            problems.append(f"{where}: {problem}: {name_rows(ids)}")
    if problems:
        raise DataError(problems)
    return decided


def _as_typed(decisions: pl.DataFrame, examples: pl.DataFrame) -> pl.DataFrame:
    """``decisions`` in the types of ``examples``; DataError when they are of another kind."""
    types = {
        "example_id": examples.schema["example_id"],
        "decision": pl.String(),
        "suggested_label": examples.schema.get("label"),
    }
    wanted = {name: types[name] for name in decisions.columns}
    problems = [
        f"decisions: column {name!r} holds {found}, expected {wanted[name]} as in the examples"
        for name, found in decisions.schema.items()
        if found not in (wanted[name], pl.Null) and not (found.is_integer() and wanted[name] == pl.Int64)
    ]
    if problems:
        raise DataError(problems)
    return decisions.cast(wanted)  # type: ignore[arg-type]
