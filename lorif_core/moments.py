"""Second moments of each layer's inputs and output gradients, over a sample of the training examples.

Axes: B examples of a batch, T positions, a / b input and output side of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorif_core.bucketing import mask_of
from lorif_core.capture import Loss, Shared, tapped
from lorif_core.layers import Layer, LinearRule, OneHotRule, WholeRule
from lorif_core.loaders import examples_of, sampled
from lorif_core.objectives import batch_rows, to_device


@dataclass
class Moments:
    """Sums over examples and positions, float64: `in.<layer>` X^T X [a, a] (of ids their counts [a]), `out.<layer>` dY^T dY.

    Of layers of which only the whole gradient is known, `in` is the sum of G G^T and `out` of G^T G.
    """

    names: Collection[str]
    """The layers; of others nothing is summed."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    """Positions that the sums of a layer are over; 0 of those of whole gradients."""
    examples: int = 0
    mask: Tensor | None = None
    """[B, T] of the batch at hand: zero where it is padding, which counts for nothing."""

    def on_input(self, layer: Layer, x: Tensor) -> Tensor:
        """Add one call's inputs."""
        if layer.name not in self.names:
            return x.new_empty(0)  # a slice would keep all of it in memory
        if isinstance(layer.rule, WholeRule):
            return layer.rule.keep(layer.module, x)
        rows = self._unpadded(x) if isinstance(layer.rule, LinearRule | OneHotRule) else x
        self._add(f"in.{layer.name}", layer.rule.input_moment(layer.module, rows))
        return x.new_empty(0)  # the backward pass needs no input for dY^T dY

    def on_gradient(self, layer: Layer, kept: Tensor, dy: Tensor) -> None:
        """Add one call's output gradients."""
        if layer.name not in self.names:
            return
        if isinstance(layer.rule, WholeRule):
            whole = layer.rule.matrix(layer.module, kept, dy)  # [B, a, b]
            self._add(f"in.{layer.name}", (whole @ whole.mT).sum(0))
            self._add(f"out.{layer.name}", (whole.mT @ whole).sum(0))
        else:
            rows = self._unpadded(dy) if isinstance(layer.rule, LinearRule | OneHotRule) else dy
            columns = layer.rule.outputs(layer.module, rows).flatten(0, 1)  # [B T, b]
            self._add(f"out.{layer.name}", columns.T @ columns)
            self.positions[layer.name] = self.positions.get(layer.name, 0) + len(columns)

    def _unpadded(self, rows: Tensor) -> Tensor:
        """Positions that are not padding, one a row [n, ...], of vectors [B, T, ..., a] or ids [B, T]; else as it is."""
        axes = 3 if rows.is_floating_point() else 2
        if self.mask is None or rows.ndim < axes or rows.shape[:2] != self.mask.shape:
            return rows
        return rows[self.mask != 0]

    def _add(self, name: str, moment: Tensor) -> None:
        if name in self.sums:
            self.sums[name] += moment
        else:
            self.sums[name] = moment.double()


def second_moments(
    model: nn.Module,
    layers: Sequence[Layer],
    names: Collection[str],
    loss: Loss,
    loader: Iterable[Any],
    *,
    examples: int,
    shared: Shared,
    device: torch.device,
    progress: Callable[[int], None],
) -> Moments:
    """One pass over evenly spaced examples.

    Args:
        model: the model, already frozen.
        layers: every attributed one: all are differentiated, so that nothing depends on `names`.
        names: the layers whose moments are summed.
        loss: per-example loss [B].
        loader: batches of training examples.
        examples: how many to use at least, where there are as many.
        shared: layers that run once for a whole batch.
        device: where the model is.
        progress: told the examples used so far.

    Raises:
        ValueError: a second moment is not finite.
    """
    moments, there = Moments(names), examples_of(loader)
    step = max(1, there // examples) if there else 1
    with tapped(model, layers, moments.on_input, moments.on_gradient, shared) as tape:
        for batch in sampled(loader, step):
            batch = to_device(batch, device)
            moments.mask = mask_of(batch)
            tape(loss, batch)
            moments.examples += batch_rows(batch)
            progress(moments.examples)
    bad = sorted(name for name, m in moments.sums.items() if not torch.isfinite(m).all())
    if bad:
        raise ValueError(
            f"inputs or gradients of layers {bad} are not finite: check the model's weights and the training data"
        )
    return moments


def moment_bytes(layer: Layer) -> int:
    """Of a layer's sums; of ids their counts."""
    inputs = layer.rows if isinstance(layer.rule, OneHotRule) else layer.rows**2
    return 8 * (inputs + layer.columns**2)


def positions_wanted(layers: Sequence[Layer], least: int, a_side: int) -> int:
    """A few positions for each unit of the widest side."""
    widest = max(max(0 if isinstance(x.rule, OneHotRule) else x.rows, x.columns) for x in layers)
    return max(least, a_side * widest)
