"""What a model does with a batch, seen on its first examples: which layers the loss reaches, and how they see examples.

A layer's per-example gradient can be taken where the examples are the first axis of its input. That cannot be told from
one batch (64 positions look like 64 examples), so the first example is run two and three times: an axis that grows with the
batch is the examples'; one that does not belongs to a layer shared by the whole batch (position embeddings of [T] or
[1, T] ids), whose output is then expanded to one copy an example; anything else mixes examples and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorif_core.capture import Loss, Shared, tapped
from lorif_core.coverage import Coverage
from lorif_core.errors import StoreError
from lorif_core.layers import Layer, PositionRule
from lorif_core.objectives import Batch, batch_rows, select_rows, to_device

PROBED = 4
"""Examples run forward and backward to see which layers the loss reaches."""


@dataclass(frozen=True)
class Probe:
    """What was seen of the layers that can be attributed."""

    coverage: Coverage
    positions: dict[str, int]
    """T of each layer: positions an example has in the first examples, over all calls of the layer; 1 = vectors."""
    shared: Shared
    """Layers run once for the whole batch (`capture.Shared`)."""
    modified: list[str]
    """Layers whose input the model changes in place after they read it."""
    single: frozenset[str]
    """Layers called once, on one vector (or one id) an example: their gradients have rank one, whatever the batch."""


def probe(
    model: nn.Module, loss: Loss, coverage: Coverage, loader: Iterable[Batch], device: torch.device, strict: bool
) -> Probe:
    """Run the first examples of `loader` through a frozen model.

    Raises:
        StoreError: the loader is empty.
        ValueError: (`strict`) layers cannot be attributed, or nothing remains.
    """
    batch = next(iter(loader), None)
    if batch is None or batch_rows(batch) == 0:
        raise StoreError("the loader gave no examples: nothing to index")
    batch = to_device(batch, device)
    two_rows, three_rows = select_rows(batch, [0, 0]), select_rows(batch, [0, 0, 0])
    twice, thrice = (_input_shapes(model, loss, coverage.layers, rows) for rows in (two_rows, three_rows))
    mixing: dict[str, str] = {}
    shared: Shared = {}
    for name, calls in twice.items():
        for two, three in zip(calls, thrice[name], strict=True):
            if two == three:
                shared[name] = len(two) - (len(two) > 1 and two[0] == 1)
            elif (two[0], three[0]) != (2, 3):
                mixing[name] = (
                    f"its input has shape {two} for two examples, {three} for three: they must be its first axis"
                )
    alone = {layer.name: layer for layer in coverage.layers if layer.name in shared}
    for name in [name for name in shared if not _broadcasts(model, loss, alone[name], shared[name], two_rows)]:
        mixing[name] = "it runs once for the whole batch, and the model does not broadcast its output"
        del shared[name]
    usable = coverage.without(mixing, model, strict)
    few = select_rows(batch, list(range(min(PROBED, batch_rows(batch)))))
    seen = _run(model, loss, usable.layers, few, shared)
    unused = {
        layer.name: "it runs under no_grad"
        if layer.name in seen.no_grad
        else "it is never called, or the loss does not depend on it"
        for layer in usable.layers
        if layer.name not in seen.positions
    }
    axes = {layer.name: 1 if isinstance(layer.module, nn.Embedding) else 2 for layer in usable.layers}
    single = {name for name, calls in twice.items() if [len(shape) for shape in calls] == [axes.get(name)]}
    return Probe(
        usable.without(unused, model, strict),
        seen.positions,
        {name: count for name, count in shared.items() if name in seen.positions},
        sorted(seen.modified),
        frozenset(single - set(shared)),
    )


@dataclass
class _Seen:
    positions: dict[str, int] = field(default_factory=dict)
    modified: set[str] = field(default_factory=set)
    no_grad: set[str] = field(default_factory=set)


def _input_shapes(model: nn.Module, loss: Loss, layers: list[Layer], batch: Batch) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of each layer's inputs, one a call."""
    found: dict[str, list[tuple[int, ...]]] = {}

    def note(layer: Layer, x: Tensor) -> None:
        found.setdefault(layer.name, []).append(tuple(x.shape))

    with tapped(model, layers, note, lambda layer, kept, dy: None) as tape, torch.no_grad():
        tape.observe(loss, batch)
    return found


def _broadcasts(model: nn.Module, loss: Loss, layer: Layer, axes: int, batch: Batch) -> bool:
    """Whether the model gives the same losses when the shared layer's output is expanded to one copy an example."""
    with torch.no_grad():
        plain = loss(model, batch)
    with tapped(model, [layer], lambda layer, x: None, lambda layer, kept, dy: None, {layer.name: axes}) as tape:
        try:
            expanded = tape(loss, batch)
        except RuntimeError:  # torch's error for shapes that do not fit
            return False
    return torch.allclose(plain.float(), expanded.float(), rtol=1e-3, atol=1e-5, equal_nan=True)


def _run(model: nn.Module, loss: Loss, layers: list[Layer], batch: Batch, shared: Shared) -> _Seen:
    """Positions of every layer the loss reaches, layers under no_grad, and inputs changed in place later."""
    size, seen = batch_rows(batch), _Seen()

    def count(layer: Layer, kept: tuple[Tensor, int], dy: Tensor) -> None:
        x, version = kept
        if x._version != version:
            seen.modified.add(layer.name)
        here = dy.numel() // (layer.columns * size) if isinstance(layer.rule, PositionRule) else 1
        seen.positions[layer.name] = seen.positions.get(layer.name, 0) + here

    with tapped(model, layers, lambda layer, x: (x, x._version), count, shared) as tape:
        tape(loss, batch)
        seen.no_grad |= tape.no_grad
    return seen
