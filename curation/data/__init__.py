"""Data sets that training, indexing and the decisions see: labelled rows (``CuratedData``) and questions (``Questions``).

The names below are imported when first used: the ones without torch stay quick to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.data.adapter import adapt
    from curation.data.base import CuratedData
    from curation.data.build import build_data
    from curation.data.digits import Digits
    from curation.data.example_data import ExampleData, Payload
    from curation.data.mixed_digits import MixedDigits
    from curation.data.people import People
    from curation.data.question_table import QuestionTable
    from curation.data.questions import Questions
    from curation.data.table import TableData

__all__ = [
    "CuratedData",
    "Digits",
    "ExampleData",
    "MixedDigits",
    "Payload",
    "People",
    "QuestionTable",
    "Questions",
    "TableData",
    "adapt",
    "build_data",
]

_HOMES = {
    "CuratedData": "base",
    "Digits": "digits",
    "ExampleData": "example_data",
    "MixedDigits": "mixed_digits",
    "Payload": "example_data",
    "People": "people",
    "QuestionTable": "question_table",
    "Questions": "questions",
    "TableData": "table",
    "adapt": "adapter",
    "build_data": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
