"""``QuestionTable``: a user's own Parquet, CSV, JSONL or JSON file of questions and answers as a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from curation.data.columns import as_plain, naming_problems, text_problems
from curation.data.question_rows import Template
from curation.data.questions import Questions, Staying, option_problems, tokenized
from curation.data.reading import read_table
from curation.data.text_tokens import TRAINED
from curation.errors import DataError
from curation.examples import (
    HOLDOUT,
    SPLITS,
    Position,
    column_problems,
    contents_of,
    id_problems,
    name_rows_where,
    row_names,
    split_problems,
)


@dataclass(frozen=True)
class QuestionColumns:
    """The names of columns in a user's table; None: there is no such column. As in ``QuestionTable``."""

    question: str = "question"
    answer: str = "answer"
    id: str | None = None
    paraphrased_answers: str | None = None
    perturbed_answers: str | None = None
    subject: str | None = None
    source: str | None = None
    split: str | None = None

    def used(self) -> list[str]:
        """Every column named."""
        return [name for name in vars(self).values() if name is not None]


class QuestionTable(Questions):
    """Rows of a Parquet, CSV, JSONL or JSON file (a list of objects), told apart by the end of its name; it is never changed.

    Args:
        path: the file.
        question: column of the questions.
        answer: column of the answers.
        id: column of the ids; None: ``example_id`` if there is one, else rows are numbered from 0.
        paraphrased_answers: column of right answers in other words, a text or a list of texts a row.
        perturbed_answers: column of wrong answers, likewise.
        subject: column that says whom a row is about.
        source: column that says where a row is from.
        split: column with the words train, validation, test and holdout; None: every row is for training.
        template: text of a row, with ``{question}`` and, at its end, ``{answer}``.
        tokenizer: ``"bpe"``, trained on the rows; a file such a one was saved to; or a Hugging Face tokenizer's folder or name
            (extra ``llm``), the one that belongs to the model. Rows that are removed from the file change a trained one: name
            a copy, out of the workspace, of the ``tokenizer.json`` that the purge left beside the model to use it on what is left.
        vocabulary: most tokens of a trained one.
        max_tokens: most tokens of a row.
        batch_size: rows a step.
        seed: of the order of the training rows.
        staying: says which rows are left in; None: all. From Python only.

    Raises:
        DataError: lists every problem of the options, the file and its rows.
    """

    path_arguments = ("path",)
    folder_arguments = ("tokenizer",)

    def __init__(
        self,
        path: str | Path,
        question: str = "question",
        answer: str = "answer",
        id: str | None = None,
        *,
        paraphrased_answers: str | None = None,
        perturbed_answers: str | None = None,
        subject: str | None = None,
        source: str | None = None,
        split: str | None = None,
        template: str = Template.text,
        tokenizer: str = TRAINED,
        vocabulary: int = 2048,
        max_tokens: int = 256,
        batch_size: int = 16,
        seed: int = 0,
        staying: Staying | None = None,
    ) -> None:
        wording = Template(template)
        columns = QuestionColumns(question, answer, id, paraphrased_answers, perturbed_answers, subject, source, split)
        problems = option_problems(wording, tokenizer, vocabulary, max_tokens, batch_size, seed)
        misnamed = naming_problems(columns, ("question", "answer"))
        problems = [f"{path}: {problem}" for problem in problems + misnamed]
        if misnamed:
            raise DataError(problems)
        table = read_table(path)
        if table.is_empty():
            raise DataError([*problems, f"{path}: the table has no rows"])
        columns, found = _resolved(columns, table, str(path))
        if problems or found:
            raise DataError(problems + found)
        examples = _examples(table, columns, str(path))
        contents = tokenized(examples, table, wording, tokenizer, vocabulary, max_tokens, str(path), staying)
        super().__init__(contents, batch_size=batch_size, seed=seed)


def _resolved(columns: QuestionColumns, table: pl.DataFrame, where: str) -> tuple[QuestionColumns, list[str]]:
    """The columns with that of the ids filled in, and what does not fit the table."""
    if columns.id is None and "example_id" in table.columns:
        columns = replace(columns, id="example_id")
    used = columns.used()
    problems = column_problems(table, dict.fromkeys(used), where)
    problems += [
        f"{where}: column {name!r} is named for {used.count(name)} uses; each needs a column of its own"
        for name in dict.fromkeys(used)
        if used.count(name) > 1
    ]
    return columns, problems


def _examples(table: pl.DataFrame, columns: QuestionColumns, where: str) -> pl.DataFrame:
    """The example table.

    Raises:
        DataError: lists every problem of the rows.
    """
    if columns.id is None:
        ids = pl.Series("example_id", np.arange(table.height, dtype=np.int64))
        names: list[object] = [Position(row) for row in range(table.height)]
    else:
        ids = as_plain(table[columns.id])
        names = row_names(ids)
    problems = id_problems(ids, where)
    made = [ids.alias("example_id")]
    for use, name in (("question", columns.question), ("answer", columns.answer)):
        texts = as_plain(table[name])
        problems += text_problems(texts, names, f"{where}: column {name!r}")
        made.append(texts.alias(use))
    for use, named in (
        ("paraphrased_answers", columns.paraphrased_answers),
        ("perturbed_answers", columns.perturbed_answers),
    ):
        if named is not None:
            lists, found = _lists(table[named], names, f"{where}: column {named!r}")
            problems += found
            made.append(lists.alias(use))
    for use, named in (("subject", columns.subject), ("source", columns.source)):
        if named is None:
            continue
        dtype = table.schema[named]
        if dtype.is_nested() or dtype == pl.Binary:
            problems.append(f"{where}: column {named!r} holds {contents_of(dtype)}; a {use} must be text or a number")
        else:
            made.append(table[named].cast(pl.String).alias(use))
    if columns.split is None:
        made.append(pl.Series("split", ["train"] * table.height, dtype=pl.String))
    else:
        splits = as_plain(table[columns.split])
        problems += split_problems(splits, names, where, (*SPLITS, HOLDOUT))
        made.append(splits.alias("split"))
    if problems:
        raise DataError(problems)
    return pl.DataFrame(made)


def _lists(column: pl.Series, names: list[object], where: str) -> tuple[pl.Series, list[str]]:
    """A column of lists of texts, or of one text a row, as lists; where there is nothing, the list is empty."""
    if column.dtype == pl.String:
        column = column.to_frame().select(pl.concat_list(column.name)).to_series()
    if not isinstance(column.dtype, pl.List) or column.dtype.inner not in (pl.String, pl.Null):
        return column, [f"{where} holds {contents_of(column.dtype)}; expected lists of texts"]
    lists = column.cast(pl.List(pl.String))
    empty = lists.list.eval(pl.element().is_null() | (pl.element().str.strip_chars() == "")).list.any().fill_null(False)
    problems = [f"{where}: an empty text in {name_rows_where(names, empty)}; remove it"] if empty.any() else []
    return lists.fill_null([]), problems
