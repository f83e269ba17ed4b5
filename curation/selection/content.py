"""What rows hold, in the forms that duplicates are told by.

Axes: N rows, D numbers of a vector.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from curation.errors import DataError
from curation.examples import column_problems, table_digest

CHARACTERS = 5
"""Of a shingle: about a word of English, and a sensible unit where words are not set apart."""


@dataclass(frozen=True)
class Content:
    """Rows, and what they hold.

    Attributes:
        ids: N.
        digests: of what they hold; rows with the same one are the same.
        texts: for near-duplicates by their words; None for other data.
        vectors: [N, D], for near-duplicates by their cosine; None where there are none.
    """

    ids: Sequence[str] | Sequence[int]
    digests: Sequence[str]
    texts: Sequence[str] | None = None
    vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse parts of other numbers of rows.

        Raises:
            DataError: they differ.
        """
        parts = {"digests": self.digests, "texts": self.texts, "vectors": self.vectors}
        problems = [
            f"{len(self.ids):,} ids, but {len(part):,} rows of {name}: they must be of the same rows"
            for name, part in parts.items()
            if part is not None and len(part) != len(self.ids)
        ]
        if problems:
            raise DataError(problems)

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    @cached_property
    def shingles(self) -> list[frozenset[str]]:
        """Of the texts."""
        return [shingles(text) for text in self.texts or ()]


def content_of(
    frame: pl.DataFrame, columns: Sequence[str], text: str | None = None, vectors: np.ndarray | None = None
) -> Content:
    """The content of an example table.

    Args:
        frame: with `example_id`.
        columns: that make a row what it is: its payload; a label is none, and rows that differ only in it are the same.
        text: the one of them that holds text.
        vectors: of the rows, [N, D].

    Raises:
        DataError: a column is missing.
    """
    wanted = ["example_id", *columns, *([text] if text else [])]
    problems = column_problems(frame, dict.fromkeys(wanted), "the rows to compare")
    if problems:
        raise DataError(problems)
    payload = frame.select(columns)
    digests = [table_digest(payload.slice(row, 1)) for row in range(len(frame))]
    texts = None if text is None else frame[text].fill_null("").to_list()
    return Content(frame["example_id"].to_list(), digests, texts, vectors)


def normalised(text: str) -> str:
    """Small letters, one space between words and no punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def shingles(text: str) -> frozenset[str]:
    """All `CHARACTERS` consecutive characters of a normalised text; a shorter one itself."""
    found = normalised(text)
    return frozenset(found[i : i + CHARACTERS] for i in range(max(1, len(found) - CHARACTERS + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a and b| / |a or b|."""
    both = len(a & b)
    return both / (len(a) + len(b) - both)
