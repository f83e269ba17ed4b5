"""What unlearning changed in a model's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from curation.errors import TrainingError


@dataclass(frozen=True)
class Changes:
    """The difference of two states of one model.

    Attributes:
        norms: Euclidean norm of the change of each tensor, by its name, where it is not zero.
        tensors: how many tensors the model has.
    """

    norms: dict[str, float]
    tensors: int

    @property
    def changed(self) -> int:
        """How many tensors are not as they were."""
        return len(self.norms)

    @property
    def norm(self) -> float:
        """Euclidean norm of the whole change."""
        return math.hypot(*self.norms.values())


def weight_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Changes:
    """What lies between two state dicts of one model.

    Raises:
        ValueError: they name different tensors.
        TrainingError: nothing changed: what ran did not train the model.
    """
    if before.keys() != after.keys():
        raise ValueError(f"two models: {sorted(before.keys() ^ after.keys())[:5]} are in one of them only")
    norms = {
        name: float((after[name].detach().double().cpu() - tensor.detach().double().cpu()).norm())
        for name, tensor in before.items()
    }
    found = Changes({name: norm for name, norm in norms.items() if norm > 0}, len(norms))
    if not found.changed:
        raise TrainingError(
            f"unlearning changed none of the {len(norms)} tensors of the model: is everything frozen (a LoRA adapter without "
            "gradients, requires_grad=False), or the learning rate zero?"
        )
    return found
