"""Frozen dataclasses of options, made of what a user wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from curation.errors import CurationError

T = TypeVar("T")


def made_by_name(what: str, kinds: Mapping[str, type[T]], name: str, options: Mapping[str, Any]) -> T:
    """The dataclass called ``name`` among ``kinds``, of ``options``.

    Raises:
        CurationError: no such ``what``, or as `made_of`; lists those there are.
    """
    if name not in kinds:
        raise CurationError(f"{what}: expected one of {', '.join(kinds)}; got {name!r}")
    return made_of(f"{what} {name}", kinds[name], options)


def made_of(what: str, kind: type[T], options: Mapping[str, Any]) -> T:
    """The dataclass ``kind`` of ``options``.

    Args:
        what: it is, for messages.
        kind: raises ValueError for what is out of range.
        options: by name.

    Raises:
        CurationError: unknown, missing or wrong options; lists those there are.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = sorted(set(options) - {x.name for x in fields})
    missing = [
        x.name
        for x in fields
        if x.default is dataclasses.MISSING and x.default_factory is dataclasses.MISSING and x.name not in options
    ]
    if unknown or missing:
        told = [f"unknown options {', '.join(unknown)}"] * bool(unknown)
        told += [f"missing {', '.join(missing)}"] * bool(missing)
        raise CurationError(f"{what}: {'; '.join(told)}; it takes {', '.join(x.name for x in fields) or 'none'}")
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:  # a number was expected, and text compared with one
        raise CurationError(f"{what}: {error}") from None
