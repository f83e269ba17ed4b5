"""Unlearning objectives by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from curation.errors import CurationError
from curation.unlearning.objectives.ascent import Ascent
from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective
from curation.unlearning.objectives.bounded_ascent import BoundedAscent
from curation.unlearning.objectives.difference import Difference
from curation.unlearning.objectives.dpo import DPO
from curation.unlearning.objectives.idk import IDK
from curation.unlearning.objectives.npo import NPO
from curation.unlearning.objectives.oracle_matching import OracleMatching
from curation.unlearning.objectives.rmu import RMU
from curation.unlearning.objectives.simnpo import SimNPO

__all__ = [
    "DPO",
    "IDK",
    "NPO",
    "OBJECTIVES",
    "RMU",
    "Ascent",
    "BoundedAscent",
    "Difference",
    "OracleMatching",
    "Retain",
    "SimNPO",
    "Step",
    "UnlearningObjective",
    "build_objective",
    "with_options",
]

T = TypeVar("T")

OBJECTIVES: dict[str, type[UnlearningObjective]] = {
    "ascent": Ascent,
    "bounded_ascent": BoundedAscent,
    "difference": Difference,
    "npo": NPO,
    "simnpo": SimNPO,
    "dpo": DPO,
    "idk": IDK,
    "rmu": RMU,
    "oracle_matching": OracleMatching,
}


def build_objective(name: str, options: Mapping[str, Any]) -> UnlearningObjective:
    """The objective called ``name``, the loss of a step.

    Raises:
        CurationError: no such objective or options; lists those there are.
    """
    if name not in OBJECTIVES:
        raise CurationError(f"objective: expected one of {', '.join(OBJECTIVES)}; got {name!r}")
    return with_options(name, OBJECTIVES[name], options)


def with_options(name: str, kind: type[T], options: Mapping[str, Any]) -> T:
    """The dataclass ``kind`` of the options of the objective called ``name``.

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
        told = [f"unknown options {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(
            missing
        )
        raise CurationError(f"objective {name}: {'; '.join(told)}; it takes {', '.join(x.name for x in fields)}")
    try:
        return kind(**options)
    except ValueError as error:
        raise CurationError(f"objective {name}: {error}") from None
