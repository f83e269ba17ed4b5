"""What a row consists of, as digests that tell whether two rows are the same, and how long it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from curation.data.example_data import ExampleData
from curation.huggingface import HASHED


def digest_of_inputs(item: Any, text: str | None = None) -> str:
    """Sha256 (hex) of what a model sees of a row beside its label: its tokens, its text (padding left out), or its numbers.

    Args:
        item: the row as a data set gives it.
        text: its text, where it has one.
    """
    if text is not None and not isinstance(item, Mapping):
        return hashlib.sha256(text.encode()).hexdigest()
    inputs: Tensor = item["input_ids"] if isinstance(item, Mapping) else item[0]
    values = np.ascontiguousarray(inputs.detach().cpu().numpy())
    return hashlib.sha256(f"{values.dtype} {values.shape} ".encode() + values.tobytes()).hexdigest()


def code_of(item: Any) -> str:
    """The label of a row as text; empty where rows have none."""
    return "" if isinstance(item, Mapping) else str(int(item[1]))


def texts_of(data: ExampleData) -> list[str] | None:
    """The text of each training row, N; None where rows are no text."""
    if data.show(0).text is None:
        return None
    return [data.show(row).text or "" for row in range(len(data.train_dataset))]


def lengths_of(data: ExampleData) -> np.ndarray:
    """Tokens of each training row, int64 [N]: words of texts without a tokenizer, one of what is no text."""
    rows, count = data.train_dataset, len(data.train_dataset)
    if data.payload_kind == "questions":
        return np.array([len(rows[row]["input_ids"]) for row in range(count)], dtype=np.int64)
    known = data.model_defaults()
    if data.payload_kind != "text":
        return np.ones(count, dtype=np.int64)
    if known["tokenizer"] == HASHED:
        return np.array([max(1, len(text.split())) for text in texts_of(data) or []], dtype=np.int64)
    return np.array([max(1, int((rows[row][0] != known["pad_id"]).sum())) for row in range(count)], dtype=np.int64)
