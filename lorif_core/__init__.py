"""Which training examples made the model do this? Low-rank influence functions over a factor store on disk.

Needs torch, numpy and safetensors, nothing else. Names are imported on first use: what only writes files loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorif_core.attributors import Attributor, GradDot, LoRIF
    from lorif_core.errors import StoreError
    from lorif_core.estimating import Estimate
    from lorif_core.merging import compact
    from lorif_core.objectives import CausalLM, Classification, Objective, Regression
    from lorif_core.removal import Purged, purge
    from lorif_core.scoring import TopK
    from lorif_core.store import FactorStore
    from lorif_core.verification import verify

__all__ = [
    "Attributor",
    "CausalLM",
    "Classification",
    "Estimate",
    "FactorStore",
    "GradDot",
    "LoRIF",
    "Objective",
    "Purged",
    "Regression",
    "StoreError",
    "TopK",
    "compact",
    "purge",
    "verify",
]

_HOMES = {
    "attributors": ("Attributor", "GradDot", "LoRIF"),
    "errors": ("StoreError",),
    "estimating": ("Estimate",),
    "merging": ("compact",),
    "objectives": ("CausalLM", "Classification", "Objective", "Regression"),
    "removal": ("Purged", "purge"),
    "scoring": ("TopK",),
    "store": ("FactorStore",),
    "verification": ("verify",),
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that holds it."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lorif_core.{module}"), name)
    raise AttributeError(f"module 'lorif_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What `dir` and completion show."""
    return __all__
