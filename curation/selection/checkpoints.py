"""Several states of one training, each with its own index, whose scores are added up with their learning rates (LESS).

score(row, group) = sum over checkpoints t of lr_t score_t(row, group), before groups are compared with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curation.errors import DataError
from curation.examples import name_rows_where
from curation.selection.adam import Moments
from lorif_core import LoRIF


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was at one time, and the index of the pool made with it.

    Attributes:
        attributor: with its index; its model has that checkpoint's weights.
        learning_rate: the mean one of the steps that led to it from the checkpoint before, or from the start.
        moments: Adam's, to weigh the target's gradients by; None = the index's curvature is used instead.
    """

    attributor: LoRIF
    learning_rate: float = 1.0
    moments: Moments | None = None

    def __post_init__(self) -> None:
        """Refuse a learning rate that is not positive.

        Raises:
            ValueError: it is not.
        """
        if not self.learning_rate > 0:
            raise ValueError(f"checkpoint: expected a learning rate above zero, got {self.learning_rate}")


def check_same_rows(checkpoints: Sequence[Checkpoint]) -> None:
    """Nothing, for checkpoints whose indexes are of the same rows in the same order.

    Raises:
        DataError: there are none, or they are not.
    """
    if not checkpoints:
        raise DataError(["no checkpoint: expected at least one model with an index of the pool"])
    first = checkpoints[0].attributor.store
    ids, problems = first.ids(), []
    for one in checkpoints[1:]:
        store = one.attributor.store
        if len(store) != len(first):
            problems.append(
                f"the index at {store.path} has {len(store):,} rows, the one at {first.path} {len(first):,}: index the same "
                "pool with every checkpoint"
            )
        elif (other := store.ids()) != ids:
            differ = [a != b for a, b in zip(ids, other, strict=True)]
            problems.append(
                f"the indexes at {first.path} and {store.path} have other rows in {sum(differ):,} of {len(first):,} places: "
                f"{name_rows_where(ids, differ)}; index the same pool in the same order with every checkpoint"
            )
    if problems:
        raise DataError(problems)
