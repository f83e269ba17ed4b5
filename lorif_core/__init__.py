"""Which training examples made the model do this? Low-rank influence functions over a factor store on disk.

Needs torch, numpy and safetensors, nothing else.
"""

from lorif_core.attributors import Attributor, GradDot, LoRIF
from lorif_core.errors import StoreError
from lorif_core.objectives import CausalLM, Classification, Objective, Regression
from lorif_core.scoring import TopK
from lorif_core.store import FactorStore, verify

__all__ = [
    "Attributor",
    "CausalLM",
    "Classification",
    "FactorStore",
    "GradDot",
    "LoRIF",
    "Objective",
    "Regression",
    "StoreError",
    "TopK",
    "verify",
]
