"""Projections that are measured on model and data: pca and whitening, as many layers a pass as memory allows.

Axes: a / b input and output side of a layer, d1 / d2 their projected sizes.

The second moments of a layer take 8 (a^2 + b^2) bytes, of a model of some billion parameters a hundred gigabytes in all. So
each pass over the sampled examples sums those of some layers, and leaves their projections. Every pass runs the same batches,
with the same random numbers where labels or the model draw them: how many passes there are changes no bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

from lorif_core import projections as kinds
from lorif_core.capture import Loss
from lorif_core.gradients import device_of
from lorif_core.layers import Layer, PositionRule
from lorif_core.moments import moment_bytes, positions_wanted, second_moments
from lorif_core.objectives import Batch, Objective
from lorif_core.options import IndexOptions
from lorif_core.precision import in_precision
from lorif_core.probe import Probe
from lorif_core.projections import Projections, Sizes
from lorif_core.whitening import POSITIONS, POSITIONS_A_SIDE, WHITENED, kfac

log = logging.getLogger(__name__)

MEASURED = ("pca", *WHITENED)
"""The projections made here."""


def measured(
    model: nn.Module,
    objective: Objective,
    options: IndexOptions,
    seen: Probe,
    sizes: Sizes,
    loader: Iterable[Batch],
    memory_limit: int,
    progress: Callable[[int], None],
) -> Projections:
    """The projections of `options`, of every layer.

    Args:
        model: the model, already frozen.
        objective: whose loss, or sampled loss, is differentiated.
        options: which projection, in which precision and of which seed.
        seen: the layers, and what is known of them.
        sizes: of their projected gradients.
        loader: batches of training examples.
        memory_limit: bytes of the sums held at once.
        progress: told the examples used so far, in each pass.

    Raises:
        ValueError: a second moment is not finite.
    """
    layers, device = seen.coverage.layers, device_of(model)

    def sides(group: Sequence[Layer]) -> Projections:
        if sum(map(moment_bytes, group)) > memory_limit:
            log.warning(
                "the moments of layer %s alone need more than memory_limit=%d bytes", group[0].name, memory_limit
            )
        loss: Loss = objective.loss
        if options.projection == "kfac":  # a generator a pass: each draws the same labels
            loss = partial(objective.sampled_loss, generator=torch.Generator(device).manual_seed(options.seed))
        with torch.random.fork_rng():
            moments = second_moments(
                model,
                layers,
                {layer.name for layer in group},
                in_precision(loss, options.precision, device),
                loader,
                examples=sample_size(options, seen),
                shared=seen.shared,
                device=device,
                progress=progress,
            )
        return kfac(group, moments, options.projection, sizes) if whitens(options) else kinds.pca(group, moments, sizes)

    together = groups(layers, memory_limit)
    log.info("%s projections of %d layers in %d passes over a sample", options.projection, len(layers), len(together))
    return Projections(options.projection, {name: x for group in together for name, x in sides(group).sides.items()})


def sample_size(options: IndexOptions, seen: Probe) -> int:
    """How many examples the moments are of, where there are as many: enough for a few positions a unit of the widest side."""
    least, a_side = (
        (POSITIONS, POSITIONS_A_SIDE) if whitens(options) else (kinds.PCA_POSITIONS, kinds.PCA_POSITIONS_A_SIDE)
    )
    layers = seen.coverage.layers
    fewest = min((seen.positions[x.name] for x in layers if isinstance(x.rule, PositionRule)), default=1)
    return -(-positions_wanted(layers, least, a_side) // fewest)


def whitens(options: IndexOptions) -> bool:
    """Whether the projection is a whitening one."""
    return options.projection in WHITENED


def groups(layers: Sequence[Layer], limit: int) -> list[list[Layer]]:
    """Layers in their order, those together whose moments `limit` bytes hold; one that needs more is alone."""
    found: list[list[Layer]] = []
    free = 0
    for layer in layers:
        size = moment_bytes(layer)
        if not found or size > free:
            found.append([])
            free = limit
        found[-1].append(layer)
        free -= size
    return found
