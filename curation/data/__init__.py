"""Data sets that training, scoring and cleaning see: one class, ``CuratedData``, whatever they were made from.

The names below are imported when first used: the ones without torch stay quick to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.data.adapter import adapt
    from curation.data.base import CuratedData, Payload
    from curation.data.build import build_data
    from curation.data.digits import Digits
    from curation.data.table import TableData

__all__ = ["CuratedData", "Digits", "Payload", "TableData", "adapt", "build_data"]

_HOMES = {
    "CuratedData": "base",
    "Payload": "base",
    "Digits": "digits",
    "TableData": "table",
    "adapt": "adapter",
    "build_data": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
