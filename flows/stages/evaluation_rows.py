"""Rows kept for a later test: no row like them is chosen, or that test would be one of memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from curation.data import ExampleData
from curation.data.contents import digest_of_inputs
from curation.selection.content import Content

WRITTEN = ("text", "questions")
"""Kinds of rows that have a text."""


def evaluation_rows(sources: Iterable[ExampleData]) -> Content:
    """What the rows hold that are neither for training nor for validation: those of the splits test and holdout.

    Validation rows are target rows, or, where no target is asked of them, were perhaps only drawn: they are none of these.

    Args:
        sources: data of one kind.
    """
    ids: list[Any] = []
    digests: list[str] = []
    texts: list[str] | None = None
    for data in sources:
        if data.payload_kind in WRITTEN:
            texts = texts or []
        splits = data.examples["split"].to_numpy()
        names = data.examples["example_id"].to_list()
        for split in sorted(set(splits.tolist()) - {"train", "validation"}):
            rows = data.dataset(split)
            for position, row in enumerate(np.flatnonzero(splits == split).tolist()):
                text = None if texts is None else data.show_row(row).text or ""
                ids.append(names[row])
                digests.append(digest_of_inputs(rows[position], text))
                if texts is not None and text is not None:
                    texts.append(text)
    return Content(ids, digests, texts)
