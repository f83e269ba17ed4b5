"""Unlearning objectives by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curation.options import made_by_name
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
]

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
    return made_by_name("objective", OBJECTIVES, name, options)
