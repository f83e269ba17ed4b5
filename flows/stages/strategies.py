"""The strategy and the budget that a job asks for, and what they go by."""

from __future__ import annotations

from typing import Any

from torch import nn

from curation.errors import CurationError, ModelError
from curation.models.embedding import embeddings
from curation.selection.budget import Budget
from curation.selection.strategies import Strategy, build_strategy
from flows.stages.common import Arguments, device


def budget_of(arguments: Arguments) -> Budget:
    """The budget of a job."""
    return Budget(**arguments["budget"])


def strategy_of(arguments: Arguments) -> Strategy:
    """The strategy of a job.

    Raises:
        ModelError: there is none of that name, or it has no such option.
    """
    options = arguments["strategy"]
    try:
        return build_strategy(options["name"], options["options"])
    except CurationError as error:
        raise ModelError(f"strategy.options: {error}") from error


def needs_embeddings(arguments: Arguments) -> bool:
    """Whether a control or the strategy goes by what the model makes of rows."""
    by_vectors = "vectors" in strategy_of(arguments).needs and arguments["strategy"]["vectors"] == "embeddings"
    return by_vectors or "repsim" in arguments["controls"]


def check_model(arguments: Arguments, model: nn.Module, batch: Any) -> None:
    """Nothing, when rows have the embeddings that a control or the strategy goes by.

    Raises:
        ModelError: the model makes none of the first batch.
    """
    if needs_embeddings(arguments):
        embeddings(model, [batch], device(arguments))
