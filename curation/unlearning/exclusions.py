"""Rows that were purged and must not come back from a file that still holds them: a list of salted hashes of their content.

A file that a user gave is never changed. What was removed from it in the eyes of this tool stands in this list, which every
job of a workspace goes by. A row is known by its content, not by its id: ids of rows that are only numbered change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from curation.errors import DataError
from curation.unlearning.canonical import canonical
from curation.unlearning.salt import Salt
from lorif_core.atomic import write_bytes

VERSION = 1


def exclude(path: Path, purge: str, contents: Sequence[str]) -> None:
    """Put the rows of one purge on the list; repeated, it changes nothing.

    Args:
        path: of the list, made where there is none; its secret salt lies beside it.
        purge: name of the purge.
        contents: digest of each row's content; equal rows as often as they were removed.
    """
    purges, salt = _read(path), _salt(path, make=not path.exists())
    purges[purge] = dict(Counter(salt.salted("content", one) for one in contents))
    write_bytes(path, canonical({"version": VERSION, "purges": purges}) + b"\n")


def excluded(path: Path, contents: Sequence[str]) -> list[int]:
    """Places of the rows on the list; of equal rows the first, as many as were removed.

    Args:
        path: of the list.
        contents: digest of each row's content.

    Raises:
        DataError: the list is damaged.
        LedgerError: its salt is gone.
    """
    left, salt, found = Counter[str](), _salt(path, make=False), []
    for rows in _read(path).values():
        left.update(rows)
    for place, one in enumerate(contents):
        key = salt.salted("content", one)
        if left[key]:
            left[key] -= 1
            found.append(place)
    return found


def _salt(path: Path, *, make: bool) -> Salt:
    return Salt.at(path.with_name(f"{path.name}.salt"), make=make)


def _read(path: Path) -> dict[str, dict[str, int]]:
    """Purge -> salted hash -> how many rows."""
    if not path.exists():
        return {}
    said = None
    with suppress(ValueError):
        said = json.loads(path.read_bytes())
    if not isinstance(said, dict) or said.get("version") != VERSION or not isinstance(said.get("purges"), dict):
        raise DataError(
            [
                f"{path}: expected a list of purged rows of version {VERSION}; put it back as it was: without it they come back"
            ]
        )
    return dict(said["purges"])
