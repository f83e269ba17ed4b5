"""Factors of layers' parts of every score, as a user names the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from curation.errors import DataError


def weights_by_layer(asked: Mapping[str, float], layers: Sequence[str]) -> dict[str, float]:
    """The factor of each layer that has one.

    Args:
        asked: name or glob -> factor, at least 0; of several that fit a layer the last counts.
        layers: names of those that are indexed.

    Raises:
        DataError: a name or glob fits no layer, or all layers would count nothing.
    """
    problems = [
        f"scores.layer_weights: {name!r} fits no layer of the index; it has {', '.join(layers)}"
        for name in asked
        if not any(fnmatchcase(layer, name) for layer in layers)
    ]
    found = {layer: weight for name, weight in asked.items() for layer in layers if fnmatchcase(layer, name)}
    if len(found) == len(layers) and not any(found.values()):
        problems.append("scores.layer_weights: every layer has the factor 0, so that no row would have a score")
    if problems:
        raise DataError(problems)
    return found
