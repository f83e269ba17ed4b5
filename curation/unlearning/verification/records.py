"""Which records a model is asked about: those to be forgotten, some that stay, and some that no model was trained on.

Axes: n records of a group, J variants (paraphrased or wrong answers) of one record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor
from torch.utils.data import Dataset

from curation.data.example_data import ExampleData
from curation.data.question_rows import Row
from curation.data.questions import Questions
from curation.errors import DataError
from curation.examples import HOLDOUT, name_rows
from curation.unlearning.rows import Rows


@dataclass(frozen=True)
class Variants:
    """Other answers to the questions of a group, one after the other.

    Attributes:
        rows: those of all records.
        owners: whose each is, 0 to n - 1, int64 [sum of J].
    """

    rows: Rows
    owners: np.ndarray

    def per_record(self, losses: np.ndarray, count: int) -> np.ndarray:
        """The mean of losses [sum of J] over the variants of each of ``count`` records [n]; NaN of one without."""
        found = np.full(count, np.nan)
        numbers = np.bincount(self.owners, minlength=count)
        sums = np.bincount(self.owners, losses, minlength=count)
        np.divide(sums, numbers, out=found, where=numbers > 0)
        return found


@dataclass(frozen=True)
class Texts:
    """What only records that are questions have.

    Attributes:
        texts: question and answer of each [n].
        prompts: ids before each answer [n].
        answers: each answer [n].
        answer_ids: ids of each, without its end [n].
        paraphrased: right answers in other words; None: no record has any.
        perturbed: wrong answers, likewise.
        max_tokens: of a prompt and its answer.
        end_id: of the token that ends an answer.
        pad_id: of what fills a batch.
        decode: ids -> text.
    """

    texts: list[str]
    prompts: list[list[int]]
    answers: list[str]
    answer_ids: list[list[int]]
    paraphrased: Variants | None
    perturbed: Variants | None
    max_tokens: int
    end_id: int
    pad_id: int
    decode: Callable[[Sequence[int]], str]

    @property
    def max_new_tokens(self) -> int:
        """Of a generated answer: the longest one's with its end, as far as there is room after the longest prompt."""
        return self.most_after([0] * len(self.prompts))

    def most_after(self, given: Sequence[int]) -> int:
        """The same where the first tokens of each answer, as many as ``given`` [n], stand in the prompt."""
        longest = max(len(ids) + 1 - count for ids, count in zip(self.answer_ids, given, strict=True))
        begun = max(len(ids) + count for ids, count in zip(self.prompts, given, strict=True))
        return min(longest, self.max_tokens - begun)


@dataclass(frozen=True)
class Group:
    """Records of one kind.

    Attributes:
        ids: of each [n].
        positions: their places among the training rows, or, of held-out ones, among the rows of their split, int64 [n].
        rows: as batches, in this order.
        texts: None where the records are no questions.
    """

    ids: list[Any]
    positions: np.ndarray
    rows: Rows
    texts: Texts | None

    def __len__(self) -> int:
        """How many there are."""
        return len(self.ids)


@dataclass(frozen=True)
class Records:
    """What is asked of a model.

    Attributes:
        forget: the records to be forgotten.
        retain: training rows that stay.
        holdout: rows no model was trained on; None where the data have none.
        choices: what a prediction is chosen among: tokens of the vocabulary, or classes.
    """

    forget: Group
    retain: Group
    holdout: Group | None
    choices: int


def records_of(
    data: ExampleData,
    forget_ids: list[Any],
    *,
    stays: np.ndarray | None = None,
    retain_rows: int = 64,
    batch_size: int = 32,
) -> Records:
    """The records of a data set that is still whole.

    Args:
        data: questions, or labelled rows of a classifier.
        forget_ids: of training rows, each once; their order is kept.
        stays: positions of the training rows to measure as those that stay; None: all others.
        retain_rows: most rows that stay, and most held-out ones if fewer are to be forgotten; evenly spaced.
        batch_size: rows of a batch.

    Raises:
        DataError: no id, an id twice, one that no training row has, nothing that stays, or a variant that is too long.
        ValueError: ``retain_rows`` or ``batch_size`` is below 1.
    """
    if retain_rows < 1 or batch_size < 1:
        raise ValueError(f"retain_rows and batch_size: expected at least 1, got {retain_rows} and {batch_size}")
    ids = data.train_ids()
    places = {name: position for position, name in enumerate(ids)}
    unknown = [name for name in forget_ids if name not in places]
    if unknown:
        raise DataError([f"forget: no training row has the id: {name_rows(unknown)}"])
    forget = np.array([places[name] for name in forget_ids], dtype=np.int64)
    others = np.arange(len(ids)) if stays is None else stays
    stays = np.setdiff1d(others, forget)
    if not len(forget) or len(set(forget.tolist())) < len(forget) or not len(stays):
        raise DataError(
            [f"forget: expected ids of some, not all, training rows, each once; got {len(forget)} of {len(ids)} rows"]
        )
    train = data.examples.filter(pl.col("split") == "train")
    split = HOLDOUT if isinstance(data, Questions) else "validation"
    unseen = data.examples.filter(pl.col("split") == split)
    holdout = _spread(np.arange(unseen.height), max(retain_rows, len(forget)))
    unseen_rows = data.ordered_dataloader(split, batch_size).dataset
    return Records(
        _group(data, data.train_dataset, train, forget, batch_size),
        _group(data, data.train_dataset, train, _spread(stays, retain_rows), batch_size),
        _group(data, unseen_rows, unseen, holdout, batch_size) if len(holdout) else None,
        data.model_defaults()["vocab_size" if isinstance(data, Questions) else "num_classes"],
    )


def _spread(positions: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of some positions, evenly spaced."""
    return (
        positions[np.unique(np.linspace(0, len(positions) - 1, most, dtype=np.int64))] if len(positions) else positions
    )


def _group(data: ExampleData, dataset: Dataset[Any], examples: pl.DataFrame, positions: np.ndarray, size: int) -> Group:
    """The rows of one split at ``positions``."""
    chosen = examples[positions]
    texts = _texts(data, chosen, size) if isinstance(data, Questions) else None
    return Group(chosen["example_id"].to_list(), positions, Rows(dataset, positions, data.collate, size), texts)


def _texts(data: Questions, chosen: pl.DataFrame, size: int) -> Texts:
    questions, answers = chosen["question"].to_list(), chosen["answer"].to_list()
    prompts = [data.encode_prompt(question) for question in questions]
    rows = [data.encode(question, answer) for question, answer in zip(questions, answers, strict=True)]
    known = data.model_defaults()
    return Texts(
        texts=[f"{question} {answer}" for question, answer in zip(questions, answers, strict=True)],
        prompts=prompts,
        answers=answers,
        answer_ids=[row["input_ids"][len(prompt) : -1].tolist() for row, prompt in zip(rows, prompts, strict=True)],
        paraphrased=_variants(data, chosen, "paraphrased_answers", size),
        perturbed=_variants(data, chosen, "perturbed_answers", size),
        max_tokens=known["max_tokens"],
        end_id=known["end_id"],
        pad_id=known["pad_id"],
        decode=data.decode,
    )


def _variants(data: Questions, chosen: pl.DataFrame, column: str, size: int) -> Variants | None:
    if column not in chosen.columns:
        return None
    rows: list[Row] = []
    owners: list[int] = []
    for owner, (question, others) in enumerate(chosen.select("question", column).iter_rows()):
        rows += [data.encode(question, other) for other in others or ()]
        owners += [owner] * (len(rows) - len(owners))
    if not rows:
        return None
    return Variants(Rows(_Encoded(rows), np.arange(len(rows)), data.collate, size), np.array(owners, dtype=np.int64))


class _Encoded(Dataset[dict[str, Tensor]]):
    """Rows held in memory."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Row:
        return self.rows[position]
