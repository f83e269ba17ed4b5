"""Which columns of a user's table are what, and the example table they make.

Axes: N rows, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from curation.examples import (
    NAMED_COLUMNS,
    NAMED_ROWS,
    RESERVED,
    Position,
    column_problems,
    contents_of,
    id_problems,
    label_problems,
    name_rows_where,
    row_names,
    split_problems,
)


@dataclass(frozen=True)
class Columns:
    """The names of columns in a user's table; None: there is no such column.

    Attributes:
        label: what the rows are labelled.
        id: names the rows.
        features: numbers; None with neither text nor image: every numeric column without another use.
        text: texts.
        image: images, or paths of image files.
        split: train, validation or test.
        true_label: right labels, only for measuring.
        source: where a row is from.
    """

    label: str
    id: str | None = None
    features: Sequence[str] | None = None
    text: str | None = None
    image: str | None = None
    split: str | None = None
    true_label: str | None = None
    source: str | None = None

    def payload(self) -> tuple[str, ...]:
        """The names the payload has in the example table."""
        if self.text is not None:
            return ("text",)
        return ("image",) if self.image is not None else tuple(self.features or ())

    def used(self) -> list[str]:
        """Every column named, one entry a use."""
        single = (self.label, self.id, self.text, self.image, self.split, self.true_label, self.source)
        return [name for name in single if name is not None] + list(self.features or ())


def naming_problems(columns: object, required: Sequence[str] = ("label",)) -> list[str]:
    """Which of ``columns`` cannot be the name of a column, one sentence each; YAML reads 5 and yes as other things."""
    problems = []
    for use, name in vars(columns).items():
        if name is None and use not in required:
            continue
        listed = use == "features"
        names = name if listed and isinstance(name, (list, tuple)) else [None if listed else name]
        if not all(isinstance(one, str) for one in names):
            what = "a list of names of columns" if listed else "the name of a column"
            problems.append(f"{use} must be {what}, got {name!r}")
    return problems


def resolve(columns: Columns, table: pl.DataFrame, where: str) -> tuple[Columns, list[str]]:
    """Fill in what ``columns`` leaves to the table, and say what does not fit the two together."""
    problems = []
    if columns.id is None and "example_id" in table.columns:
        columns = replace(columns, id="example_id")
    payloads = [name for name in ("features", "text", "image") if getattr(columns, name) is not None]
    if len(payloads) > 1:
        problems.append(f"{where}: give one of features, text and image; got {', '.join(payloads)}")
    elif not payloads:
        taken = {*columns.used(), *RESERVED}
        numeric = [name for name, dtype in table.schema.items() if _is_number(dtype) and name not in taken]
        texts = [name for name, dtype in table.schema.items() if dtype == pl.String and name not in taken]
        problems += [problem for name in texts for problem in _almost_numbers(table, name, columns.id, where)]
        if not (numeric or problems):
            problems.append(
                f"{where}: there is no column of numbers without another use to be a feature; name features, text or "
                f"image; the columns are {', '.join(table.columns[:NAMED_COLUMNS])}"
            )
        columns = replace(columns, features=numeric)
    elif columns.features is not None and not columns.features:
        problems.append(f"{where}: features is empty; name at least one column")
    problems += column_problems(table, columns.used(), where)
    if columns.features:
        problems += [
            f"{where}: a feature cannot be called {name!r}, a name this tool keeps for itself; rename the column"
            for name in columns.features
            if name in RESERVED and columns.used().count(name) == 1
        ]
    used = columns.used()
    for name in dict.fromkeys(name for name in used if used.count(name) > 1):
        problems.append(
            f"{where}: column {name!r} is named for {used.count(name)} uses; each needs a column of its own"
        )
    return columns, problems


def examples_of(
    table: pl.DataFrame, columns: Columns, where: str, *, first_row: int = 0, split: str | None = None
) -> tuple[pl.DataFrame, list[object], list[str]]:
    """The example table of a user's table that has every column of ``columns``.

    Args:
        table: the user's rows.
        columns: as resolved.
        where: what to call the table in messages.
        first_row: number of the first row, where rows have no ids but numbers.
        split: of all rows, where there is no column for it; None: left out.

    Returns:
        The example table, what to call its rows in messages, and the problems of ids, labels and splits.
    """
    if columns.id is None:
        ids = pl.Series("example_id", np.arange(first_row, first_row + table.height, dtype=np.int64))
    else:
        ids = as_plain(table[columns.id])
    names = _names(table, columns.id)
    problems = id_problems(ids, where)
    labels = as_label(table[columns.label])
    problems += label_problems(labels, names, where)
    made = [ids.alias("example_id"), labels.alias("label")]
    if columns.text is not None:
        made.append(as_plain(table[columns.text]).alias("text"))
    elif columns.image is not None:
        made.append(table[columns.image].alias("image"))
    else:
        made += [table[name] for name in columns.features or ()]
    if columns.split is not None:
        splits = as_plain(table[columns.split])
        problems += split_problems(splits, names, where)
        made.append(splits.alias("split"))
    elif split is not None:
        made.append(pl.Series("split", [split] * table.height, dtype=pl.String))
    if columns.source is not None:
        dtype = table.schema[columns.source]
        if dtype.is_nested() or dtype == pl.Binary:
            problems.append(
                f"{where}: column {columns.source!r} holds {contents_of(dtype)}; a source must be text or a number"
            )
        else:
            made.append(table[columns.source].cast(pl.String).alias("source"))
    if columns.true_label is not None:
        truths = as_label(table[columns.true_label])
        if truths.dtype != labels.dtype:
            problems.append(
                f"{where}: column {columns.true_label!r} holds {contents_of(truths.dtype)}, the labels in "
                f"{columns.label!r} are {contents_of(labels.dtype)}; they must be of one kind"
            )
        made.append(truths.alias("true_label"))
    return pl.DataFrame(made), names, problems


def as_label(column: pl.Series) -> pl.Series:
    """Labels as String or Int64 where that loses nothing; any other column as it is."""
    column = as_plain(column)
    if column.dtype == pl.Boolean:
        return column.cast(pl.Int64)
    if column.dtype.is_float():
        column = column.fill_nan(None)
        whole = column.cast(pl.Int64, strict=False)
        return whole if (whole.cast(column.dtype) == column).fill_null(column.is_null()).all() else column
    return column


def as_plain(column: pl.Series) -> pl.Series:
    """Text and whole numbers in any encoding as String and Int64 (beyond 64 bits with a sign: String); others as they are."""
    if column.dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if not column.dtype.is_integer():
        return column
    whole = column.cast(pl.Int64, strict=False)
    return whole if whole.null_count() == column.null_count() else column.cast(pl.String)


def text_problems(texts: pl.Series, names: Sequence[object], where: str) -> list[str]:
    """What is wrong with a column of texts: its type, empty ones. ``where`` names the column."""
    if texts.dtype != pl.String:
        return [f"{where} holds {contents_of(texts.dtype)}; expected text"]
    empty = texts.is_null() | (texts.str.strip_chars() == "").fill_null(False)
    if not empty.any():
        return []
    return [f"{where}: an empty text in {name_rows_where(names, empty)}; fill it in or remove the row"]


def feature_inputs(
    table: pl.DataFrame, features: Sequence[str], names: Sequence[object], where: str
) -> tuple[np.ndarray, list[str]]:
    """The feature columns as they are, float32 [N, F], and their problems; the model standardises them.

    A column whose spread is lost in float32 (nanoseconds since 1970, say) is a problem, not a silently constant feature.
    """
    values = np.zeros((table.height, len(features)), dtype=np.float32)
    problems = []
    for position, name in enumerate(features):
        column = f"{where}: column {name!r}"
        if not _is_number(table.schema[name]):
            problems.append(
                f"{column} holds {contents_of(table.schema[name])}; a feature must be numbers"
                f"{_words(table[name], names)}"
            )
            continue
        exact = table[name].cast(pl.Float64).to_numpy()
        with np.errstate(over="ignore"):
            values[:, position] = exact
        finite = np.isfinite(values[:, position])
        if not finite.all():
            rows = name_rows_where(names, ~finite)
            problems.append(
                f"{column}: a number is missing, not finite or beyond 3.4e38 in {rows}; fill it in or remove the row"
            )
        elif 0 < exact.std() < 100 * np.spacing(np.abs(values[:, position]).max()):
            problems.append(
                f"{column}: the numbers differ too little for their size ({exact[0]!r}); subtract their mean"
            )
    return values, problems


def _names(table: pl.DataFrame, id_column: str | None) -> list[object]:
    """What to call the rows of ``table`` in messages."""
    return (
        [Position(row) for row in range(table.height)] if id_column is None else row_names(as_plain(table[id_column]))
    )


def _almost_numbers(table: pl.DataFrame, name: str, id_column: str | None, where: str) -> list[str]:
    """Refuse to leave out silently a column of numbers that a few cells make one of texts."""
    given = table[name].is_not_null()
    wrong = table[name].cast(pl.Float64, strict=False).is_null() & given
    if not 0 < wrong.sum() <= given.sum() / 2:
        return []
    values = table[name].filter(wrong).unique(maintain_order=True).to_list()
    cells = ", ".join(map(repr, values[:NAMED_ROWS])) + (" and others" if len(values) > NAMED_ROWS else "")
    rows = name_rows_where(_names(table, id_column), wrong)
    return [
        f"{where}: column {name!r} holds numbers but for {cells} in {rows}. Put numbers there or remove those rows, or "
        "name the columns to use in features"
    ]


def _words(column: pl.Series, names: Sequence[object]) -> str:
    """Which rows keep a column of texts from being one of numbers, where only some do."""
    if column.dtype != pl.String:
        return ""
    wrong = column.cast(pl.Float64, strict=False).is_null() & column.is_not_null()
    if not wrong.any() or wrong.all():
        return ""
    return f", and {column.filter(wrong)[0]!r} or the like is in {name_rows_where(names, wrong)}"


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype == pl.Boolean


def differing_types(first: pl.DataFrame, second: pl.DataFrame) -> Iterator[str]:
    """The ids, labels and true labels that two example tables hold in different types, one sentence each."""
    for name in ("example_id", "label", "true_label"):
        if name in first.columns and name in second.columns and first.schema[name] != second.schema[name]:
            here, there = contents_of(second.schema[name]), contents_of(first.schema[name])
            yield f"the column of the {name} holds {here} here, {there} in the training file"
