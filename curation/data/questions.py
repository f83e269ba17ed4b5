"""``Questions``: questions and answers that a language model learns, with ids, splits and edits.

Axes: N training rows (their index is the position among the training rows, in table order), B rows of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor
from torch.utils.data import DataLoader

from curation.data.edits import plan_drops
from curation.data.example_data import ExampleData, Payload
from curation.data.question_rows import QuestionRows, Row, Template, answer_tokens, padded, prompt_tokens
from curation.data.text_tokens import LEAST_VOCABULARY, TRAINED, TextTokenizer, read_tokenizer, trained_tokenizer
from curation.errors import DataError
from curation.examples import HOLDOUT, SPLITS, column_problems, name_rows

Staying = Callable[[pl.DataFrame, pl.DataFrame], pl.Series]
"""(examples, the user's table) -> which rows of the examples stay, bool [rows]."""
# Without validation rows this many training rows, evenly spread, show how far a training is.
WATCHED = 64


@dataclass(frozen=True)
class QuestionContents:
    """What a data set of questions holds; never changed, an edit makes another.

    Attributes:
        examples: columns ``example_id``, ``question``, ``answer``, ``split`` and, where there are any,
            ``paraphrased_answers``, ``perturbed_answers`` (lists of text), ``subject`` and ``source``.
        table: the user's own rows and columns; row i is row i of ``examples``.
        rows: the same as token ids, all splits.
        tokenizer: what made them.
        template: where question and answer stand.
        max_tokens: the most a row may have.
    """

    examples: pl.DataFrame
    table: pl.DataFrame
    rows: QuestionRows
    tokenizer: TextTokenizer
    template: Template
    max_tokens: int


class Questions(ExampleData):
    """Rows of a question and its answer; the loss is on the answer and its end token.

    A batch is a dict of int64 tensors [B, T], padded on the right: ``input_ids``, ``attention_mask`` (1 = token) and
    ``labels`` (the ids of the answer and its end; -100 on prompt and padding; not shifted: position t predicts labels[t + 1]).

    Splits are train, validation, test and holdout (rows never trained on, of the distribution of the others). Where no row
    is of the split validation, some training rows stand for it: then it shows how well they are known.

    Args:
        contents: what it holds.
        batch_size: rows a step.
        seed: of the order of the training rows.

    Attributes:
        train_dataset: map-style; item -> dict of tensors [T].
        validation_dataset: likewise.

    Raises:
        DataError: ``batch_size`` is not a positive whole number.
    """

    def __init__(self, contents: QuestionContents, *, batch_size: int = 16, seed: int = 0) -> None:
        splits = contents.examples["split"]
        datasets = {split: contents.rows.take((splits == split).arg_true().to_numpy()) for split in (*SPLITS, HOLDOUT)}
        if not len(datasets["validation"]):
            count = len(datasets["train"])
            datasets["validation"] = datasets["train"].take(
                np.unique(np.linspace(0, count - 1, WATCHED, dtype=np.int64))
            )
        super().__init__(contents.examples, "questions", contents.table, datasets, batch_size=batch_size, seed=seed)
        self.contents = contents
        self.train_dataset, self.validation_dataset = datasets["train"], datasets["validation"]
        self._digest: str | None = None
        self._places: dict[Any, int] | None = None

    def digest(self) -> str:
        """Sha256 (64 hex digits) of the ids, splits and tokens of all rows, the tokenizer, batch size and seed."""
        if self._digest is None:
            seen = {
                "ids": self.examples["example_id"].to_list(),
                "splits": self.examples["split"].to_list(),
                "rows": self.contents.rows.digest(),
                "template": self.contents.template.text,
                "defaults": self.model_defaults(),
                "batch_size": self.batch_size,
                "seed": self.seed,
            }
            self._digest = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
        return self._digest

    def model_defaults(self) -> dict[str, Any]:
        """``vocab_size``, ``max_tokens``, ``pad_id``, ``end_id`` and ``tokenizer`` (its digest)."""
        tokenizer = self.contents.tokenizer
        return {
            "vocab_size": tokenizer.size,
            "max_tokens": self.contents.max_tokens,
            "pad_id": tokenizer.pad_id,
            "end_id": tokenizer.end_id,
            "tokenizer": tokenizer.digest,
        }

    def collate(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Rows as one batch [B, T], padded on the right."""
        return padded(rows, self.contents.tokenizer.pad_id)

    def encode(self, question: str, answer: str) -> Row:
        """Any question with any answer as a row, such as a paraphrased or a wrong one.

        Raises:
            DataError: it has more than ``max_tokens`` tokens.
        """
        ids, prompt = answer_tokens(self.contents.tokenizer, self.contents.template, question, answer)
        if len(ids) > self.contents.max_tokens:
            raise DataError([f"{len(ids)} tokens, max_tokens is {self.contents.max_tokens}: {question!r} {answer!r}"])
        return QuestionRows([ids], np.array([prompt]))[0]

    def encode_prompt(self, question: str) -> list[int]:
        """The ids before an answer, for a model to go on from."""
        return prompt_tokens(self.contents.tokenizer, self.contents.template, question)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens and without spaces around it."""
        return self.contents.tokenizer.text(ids).strip()

    def ids_where(self, column: str, values: Iterable[Any]) -> list[Any]:
        """The ids of the rows, of any split, that have one of ``values`` in ``column`` of the user's table.

        Raises:
            DataError: there is no such column, or no row has one of the values (naming those).
        """
        problems = column_problems(self.table, [column], "table")
        if problems:
            raise DataError(problems)
        wanted = list(values)
        cells = self.table[column].to_list()
        there = set(cells)
        missing = [value for value in wanted if value not in there]
        if missing:
            raise DataError([f"column {column!r}: no row has {', '.join(map(repr, missing))}"])
        chosen = set(wanted)
        ids = self.examples["example_id"].to_list()
        return [name for name, cell in zip(ids, cells, strict=True) if cell in chosen]

    def loader_of(self, ids: Sequence[Any], batch_size: int | None = None) -> DataLoader[Any]:
        """Batches of the rows called ``ids``, of any split, in that order.

        Raises:
            DataError: naming the ids that no row has.
        """
        if self._places is None:
            self._places = {name: row for row, name in enumerate(self.examples["example_id"].to_list())}
        unknown = [name for name in ids if name not in self._places]
        if unknown:
            raise DataError([f"no row of the data has the id: {name_rows(unknown)}"])
        rows = np.array([self._places[name] for name in ids], dtype=np.int64)
        return self._loader(self.contents.rows.take(rows), self.batch_size if batch_size is None else batch_size)

    def edited(self, decisions: pl.DataFrame) -> Questions:
        """The same data without the training rows that ``decisions`` drop; tokenizer and other splits stay.

        Args:
            decisions: columns ``example_id`` and ``decision`` (keep, drop, review).

        Raises:
            DataError: lists all problems: unknown or repeated ids, unknown decisions, a relabel (an answer is no label), no
                training row left.
        """
        kept = plan_drops(self.examples, decisions)
        before = self.contents
        contents = replace(
            before,
            examples=before.examples.filter(kept),
            table=before.table.filter(kept),
            rows=before.rows.take(kept.arg_true().to_numpy()),
        )
        return Questions(contents, batch_size=self.batch_size, seed=self.seed)

    def show_row(self, row: int) -> Payload:
        """Question and answer of row ``row`` of the example table."""
        return Payload("text", text=f"{self.examples['question'][row]}\n{self.examples['answer'][row]}")


def option_problems(
    template: Template, tokenizer: object, vocabulary: object, max_tokens: object, batch_size: object, seed: object
) -> list[str]:
    """What is wrong with the options every data set of questions has."""
    problems = template.problems()
    if not isinstance(tokenizer, str) or not tokenizer:
        problems.append(f"tokenizer must be {TRAINED!r}, a file, a folder or a name on the hub, got {tokenizer!r}")
    for name, value, least in (
        ("vocabulary", vocabulary, LEAST_VOCABULARY),
        ("max_tokens", max_tokens, 2),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{name} must be a whole number of at least {least}, got {value!r}")
    return problems


def tokenized(
    examples: pl.DataFrame,
    table: pl.DataFrame,
    template: Template,
    tokenizer: str,
    vocabulary: int,
    max_tokens: int,
    where: str,
    staying: Staying | None = None,
) -> QuestionContents:
    """A checked table of examples with its tokens.

    A tokenizer of its own is trained on the rows of every split, so that rows that are never trained on take about as many
    tokens as the others, with which membership tests compare them. So are rows that ``staying`` leaves out: the model's ids are
    of a tokenizer that was trained on them. They are not made into tokens, and may be too long: a tokenizer that a purge left
    spells removed words in smaller pieces.

    Raises:
        DataError: there is no such tokenizer; a row has too many tokens; there is no training row.
    """
    if not (examples["split"] == "train").any():
        raise DataError([f"{where}: no row is in the train split"])
    pairs = list(zip(examples["question"].to_list(), examples["answer"].to_list(), strict=True))
    if tokenizer == TRAINED:
        made = trained_tokenizer(
            (text for question, answer in pairs for text in (template.prompt(question), template.completion(answer))),
            vocabulary,
        )
    else:
        made = read_tokenizer(tokenizer)
    if staying is not None:
        kept = staying(examples, table)
        examples, table = examples.filter(kept), table.filter(kept)
        pairs = [pair for pair, stays in zip(pairs, kept.to_list(), strict=True) if stays]
    encoded = [answer_tokens(made, template, question, answer) for question, answer in pairs]
    names = examples["example_id"].to_list()
    long = [name for name, (ids, _) in zip(names, encoded, strict=True) if len(ids) > max_tokens]
    if long:
        most = max(len(ids) for ids, _ in encoded)
        raise DataError(
            [
                f"{where}: more than max_tokens ({max_tokens}) tokens in {name_rows(long)}; raise it to {most}, or shorten them"
            ]
        )
    rows = QuestionRows([ids for ids, _ in encoded], np.array([prompt for _, prompt in encoded]))
    return QuestionContents(examples, table, rows, made, template, max_tokens)
