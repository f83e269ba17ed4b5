"""What is measured of a model: of a classifier its accuracy, of a language model the answers it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from curation.models.answers import check_answers, evaluate_answers
from curation.models.evaluation import check_batch, evaluate


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        rate: the share in [0, 1] that tells most; ``measure`` returns it under this name, and its 95 % interval under the name
            with ``_low`` and ``_high``.
        measure: of (model, loader): ``rate``, ``loss`` and ``n`` (rows).
        check: of (model, batch, number of classes or None): ModelError where the model does not fit the batch.
    """

    rate: str
    measure: Callable[[Any, Any], dict[str, float]]
    check: Callable[[Any, Any, int | None], None]


CLASSIFIER = Kind("accuracy", evaluate, check_batch)
LANGUAGE_MODEL = Kind("exact", evaluate_answers, lambda model, batch, _: check_answers(model, batch))


def kind_of(batch: Any) -> Kind:
    """The kind of model a batch is for: questions are mappings, labelled rows pairs of inputs and codes."""
    return LANGUAGE_MODEL if isinstance(batch, Mapping) else CLASSIFIER
