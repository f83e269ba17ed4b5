"""Strategies by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from curation.errors import CurationError
from curation.selection.strategies.base import Selection, Strategy
from curation.selection.strategies.density import Density
from curation.selection.strategies.facility_location import FacilityLocation
from curation.selection.strategies.importance import Importance
from curation.selection.strategies.quotas import Quotas
from curation.selection.strategies.round_robin import RoundRobin
from curation.selection.strategies.top_k import TopK

__all__ = [
    "STRATEGIES",
    "Density",
    "FacilityLocation",
    "Importance",
    "Quotas",
    "RoundRobin",
    "Selection",
    "Strategy",
    "TopK",
    "build_strategy",
]

STRATEGIES: dict[str, type[Strategy]] = {
    "top_k": TopK,
    "round_robin": RoundRobin,
    "facility_location": FacilityLocation,
    "density": Density,
    "quotas": Quotas,
    "importance": Importance,
}


def build_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """The strategy called ``name``.

    Raises:
        CurationError: no such strategy or options; lists those there are.
    """
    if name not in STRATEGIES:
        raise CurationError(f"strategy: expected one of {', '.join(STRATEGIES)}; got {name!r}")
    kind = STRATEGIES[name]
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    unknown = sorted(set(options) - {x.name for x in fields})
    missing = [
        x.name
        for x in fields
        if x.default is dataclasses.MISSING and x.default_factory is dataclasses.MISSING and x.name not in options
    ]
    if unknown or missing:
        told = [f"unknown options {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(
            missing
        )
        raise CurationError(
            f"strategy {name}: {'; '.join(told)}; it takes {', '.join(x.name for x in fields) or 'none'}"
        )
    try:
        return kind(**options)
    except ValueError as error:
        raise CurationError(f"strategy {name}: {error}") from None
