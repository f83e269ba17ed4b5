"""Hooks that hand out one batch's per-layer inputs and output gradients, with every weight frozen.

Axes: B examples, T positions, a / b input and output side of a layer, d1 / d2 the projected sides.

No weight gradient is ever computed: weights do not require gradients, and the graph starts at the outputs of the first
attributed layers, which are made leaves. What the backward pass then computes is the gradient of activations only. The
model's mode, flags and hooks, and every random generator, are as before when the block is left, also by an exception.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorif_core.contraction import (
    LayerGradient,
    Sides,
    contract,
    contract_input,
    keeps_input,
    merge,
    project,
    project_both,
)
from lorif_core.layers import Layer, OneHotRule, WholeRule
from lorif_core.lookup import Lookup
from lorif_core.objectives import Batch, batch_rows

Loss = Callable[[nn.Module, Batch], Tensor]
OnInput = Callable[[Layer, Tensor], Any]
"""(layer, its input) -> whatever `OnGradient` needs of it."""
OnGradient = Callable[[Layer, Any, Tensor], None]
"""(layer, what `OnInput` returned for this call, gradient of the summed loss with respect to this call's output)."""


Shared = dict[str, int]
"""Layers that run once for the whole batch -> axes of their input there, a leading one of size 1 not counted."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter requiring a gradient, inside; modes, flags and random states restored after."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    random_state, numpy_state = random.getstate(), np.random.get_state()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.callback(random.setstate, random_state)
        stack.callback(np.random.set_state, numpy_state)
        # the fused transformer kernels bypass the layers' hooks
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        for module, training in modes.items():
            stack.callback(setattr, module, "training", training)
        for parameter, flag in flags.items():
            stack.callback(parameter.requires_grad_, flag)
        model.eval()
        model.requires_grad_(False)
        yield


@contextmanager
def tapped(
    model: nn.Module, layers: Sequence[Layer], on_input: OnInput, on_gradient: OnGradient, shared: Shared | None = None
) -> Iterator[Tape]:
    """Hooks on `layers` for the length of the block; call the yielded tape on batches.

    Args:
        model: a frozen model.
        layers: which to tap.
        on_input: called with each call's input.
        on_gradient: called with the gradient of each call's output.
        shared: layers that run once for the whole batch -> axes of their input (`probe.Probe.shared`).
    """
    tape = Tape(model, on_input, on_gradient, shared or {})
    with ExitStack() as stack:
        for layer in layers:
            hook = layer.module.register_forward_hook(partial(tape.record, layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield tape


class Tape:
    """Runs batches through a tapped model; one callback a layer call forward, one backward."""

    def __init__(self, model: nn.Module, on_input: OnInput, on_gradient: OnGradient, shared: Shared) -> None:
        """Callbacks see one call of one layer at a time; a module called twice calls them twice."""
        self.model, self.on_input, self.on_gradient, self.shared = model, on_input, on_gradient, shared
        self.no_grad: set[str] = set()
        self._leaves: list[Tensor] = []
        self._observing = False
        self._size = 0

    def __call__(self, loss: Loss, batch: Batch) -> Tensor:
        """Per-example losses [B], detached; the callbacks have run for every layer when this returns.

        Raises:
            ValueError: no attributed layer takes part in the loss.
        """
        self._leaves.clear()
        self._size = batch_rows(batch)
        with torch.inference_mode(False), torch.enable_grad():
            losses = loss(self.model, batch)
            if not losses.requires_grad:
                raise ValueError(
                    "the loss does not depend on any attributed layer: check layers=[...] and the model's no_grad blocks"
                )
            # .grad is never written: only the path to the leaves is differentiated
            torch.autograd.grad(losses.sum(), self._leaves, allow_unused=True)
        self._leaves.clear()
        return losses.detach()

    def observe(self, loss: Loss, batch: Batch) -> None:
        """A forward pass only: `on_input` is called, nothing is differentiated."""
        self._observing = True
        try:
            loss(self.model, batch)
        finally:
            self._observing = False

    def record(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Forward hook: keep the input, and see to it that the output's gradient is computed and handed on."""
        x = args[0] if args else next(iter(kwargs.values()))
        if self._observing:
            self.on_input(layer, x)
            return output
        if not torch.is_grad_enabled():
            self.no_grad.add(layer.name)
            return output
        axes = self.shared.get(layer.name)
        # unless a shared layer before this one already made it one copy an example
        if axes is not None and not output.requires_grad and (x.ndim == axes or len(x) == 1):
            x, output = self._per_example(x, x.ndim > axes), self._per_example(output, x.ndim > axes)
        with _plain_arithmetic(output.device.type):
            kept = self.on_input(layer, x)
        if not output.requires_grad:
            leaf = output.detach().requires_grad_()
            self._leaves.append(leaf)
            output = leaf.clone()  # not a leaf itself, so that in-place operations may follow
        output.register_hook(partial(self._hand_on, layer, kept))
        return output

    def _per_example(self, tensor: Tensor, leading: bool) -> Tensor:
        """[1, T, ...] (`leading`) or [T, ...] -> [B, T, ...]: the tensor every example of the batch shares, once for each."""
        tensor = tensor if leading else tensor.unsqueeze(0)
        return tensor.expand(self._size, *tensor.shape[1:])

    def _hand_on(self, layer: Layer, kept: Any, dy: Tensor) -> None:
        with _plain_arithmetic(dy.device.type):
            self.on_gradient(layer, kept, dy.detach())


@contextmanager
def _plain_arithmetic(device: str) -> Iterator[None]:
    """No graph, and no autocast where the caller has it on (entering one costs more than a small layer)."""
    with torch.no_grad():
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                yield
        else:
            yield


class GradientCollector:
    """Callbacks that gather one batch's projected per-example gradients, layer by layer."""

    def __init__(self, sides: dict[str, Sides], modified: Collection[str]) -> None:
        """`sides`: (P_in, P_out) of each layer; `modified`: layers whose input the model changes in place afterwards."""
        self.sides, self.modified = sides, modified
        self._kept_inputs: set[str] = set()
        self._calls: dict[str, list[LayerGradient]] = {}

    def on_input(self, layer: Layer, x: Tensor) -> Tensor:
        """Keep what `on_gradient` needs: X P_in, X itself, or what a whole rule asks for."""
        if isinstance(layer.rule, WholeRule):
            return layer.rule.keep(layer.module, x)
        if isinstance(layer.rule, OneHotRule):
            return layer.rule.ids(x)
        sides = self.sides[layer.name]
        if layer.name not in self.modified and keeps_input(layer.rule, sides, layer.rows, layer.columns):
            self._kept_inputs.add(layer.name)
            return x
        return layer.rule.inputs(layer.module, x, _matrix(sides[0]))

    def on_gradient(self, layer: Layer, kept: Tensor, dy: Tensor) -> None:
        """Add this call's projected gradient."""
        sides, rule = self.sides[layer.name], layer.rule
        if isinstance(rule, WholeRule):
            gradient: LayerGradient = project_both(rule.matrix(layer.module, kept, dy), sides)
        elif isinstance(rule, OneHotRule):
            gradient = _lookup(sides[0]).rows(kept, project(rule.outputs(layer.module, dy), sides[1]))
        elif layer.name in self._kept_inputs:
            gradient = contract_input(rule, layer.module, kept, rule.outputs(layer.module, dy), sides)
        else:
            gradient = contract(kept, rule.outputs(layer.module, dy), sides[1])
        self._calls.setdefault(layer.name, []).append(gradient)

    def take(self) -> dict[str, LayerGradient]:
        """The gradients of the batch just run, calls of one module summed."""
        merged = {name: merge(calls) for name, calls in self._calls.items()}
        self._calls = {}
        return merged


def _matrix(side: Tensor | Lookup | None) -> Tensor | None:
    if isinstance(side, Lookup):
        raise TypeError("a lookup projects ids only")
    return side


def _lookup(side: Tensor | Lookup | None) -> Lookup:
    if not isinstance(side, Lookup):
        raise TypeError("ids are projected by a lookup only")
    return side
