"""One text for one value: JSON whose bytes depend on nothing but what it says, so that a hash of it can be checked by others.

Keys sorted, no spaces, UTF-8, floats as Python's `repr` (the shortest text that reads back as the same number).
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any


def canonical(value: Any) -> bytes:
    """The canonical JSON of plain values: dict with string keys, list or tuple, str, int, float, bool, None.

    Raises:
        ValueError: a number that is not finite, a key that is not a string, or another type; the message says where.
    """
    _check(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _check(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if type(key) is not str:  # numbers would be sorted as numbers now, and as text once read back
                raise ValueError(f"{where}: expected strings as keys, got {key!r}")
            _check(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _check(inner, f"{where}[{position}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no JSON; use None for what was not measured")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: not a text that UTF-8 can hold ({error.reason})") from None
    elif not (value is None or isinstance(value, int)):
        raise ValueError(f"{where}: expected plain values, got {type(value).__name__}")
