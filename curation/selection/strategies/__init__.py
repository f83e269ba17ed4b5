"""Strategies by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curation.options import made_by_name
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
    return made_by_name("strategy", STRATEGIES, name, options)
