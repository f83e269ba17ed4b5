"""Hooks that hand out one batch's per-layer inputs and output gradients, with every weight frozen.

Axes: B examples, T positions, a / b input and output side of a layer, d1 / d2 the projected sides.

No weight gradient is ever computed: weights do not require gradients, and the graph starts at the outputs of the first
attributed layers, which are made leaves. What the backward pass then computes is the gradient of activations only. The
model's mode, flags and hooks, and every random generator, are as before when the block is left, also by an exception.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorif_core.layers import Layer, LayerGradient, Sides
from lorif_core.objectives import Batch

Loss = Callable[[nn.Module, Batch], Tensor]
OnInput = Callable[[Layer, Tensor], Any]
"""(layer, its input) -> whatever `OnGradient` needs of it."""
OnGradient = Callable[[Layer, Any, Tensor], None]
"""(layer, what `OnInput` returned for this call, gradient of the summed loss with respect to this call's output)."""


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
def tapped(model: nn.Module, layers: Sequence[Layer], on_input: OnInput, on_gradient: OnGradient) -> Iterator[Tape]:
    """Hooks on `layers` for the length of the block; call the yielded tape on batches."""
    tape = Tape(model, on_input, on_gradient)
    with ExitStack() as stack:
        for layer in layers:
            hook = layer.module.register_forward_hook(partial(tape.record, layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield tape


class Tape:
    """Runs batches through a tapped model; one callback a layer call forward, one backward."""

    def __init__(self, model: nn.Module, on_input: OnInput, on_gradient: OnGradient) -> None:
        """Callbacks see one call of one layer at a time; a module called twice calls them twice."""
        self.model, self.on_input, self.on_gradient = model, on_input, on_gradient
        self.no_grad: set[str] = set()
        self._leaves: list[Tensor] = []

    def __call__(self, loss: Loss, batch: Batch) -> Tensor:
        """Per-example losses [B], detached; the callbacks have run for every layer when this returns.

        Raises:
            ValueError: no attributed layer takes part in the loss.
        """
        self._leaves.clear()
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

    def record(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """Forward hook: keep the input, and see to it that the output's gradient is computed and handed on."""
        if not torch.is_grad_enabled():
            self.no_grad.add(layer.name)
            return output
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            kept = self.on_input(layer, args[0] if args else next(iter(kwargs.values())))
        if not output.requires_grad:
            leaf = output.detach().requires_grad_()
            self._leaves.append(leaf)
            output = leaf.clone()  # not a leaf itself, so that in-place operations may follow
        output.register_hook(partial(self._hand_on, layer, kept))
        return output

    def _hand_on(self, layer: Layer, kept: Any, dy: Tensor) -> None:
        with torch.no_grad(), torch.autocast(dy.device.type, enabled=False):
            self.on_gradient(layer, kept, dy.detach())


class GradientCollector:
    """Callbacks that gather one batch's projected per-example gradients, layer by layer."""

    def __init__(self, sides: dict[str, Sides]) -> None:
        """`sides`: (P_in, P_out) of each layer by name."""
        self.sides = sides
        self._calls: dict[str, list[LayerGradient]] = {}
        self.batch_size = 0

    def on_input(self, layer: Layer, x: Tensor) -> Tensor:
        """Keep X P_in.

        Raises:
            ValueError: the layer's input does not have the examples of the batch as its first axis.
        """
        if x.ndim < 1 or len(x) != self.batch_size:
            raise ValueError(
                f"layer {layer.name!r}: expected the {self.batch_size} examples of the batch as the first axis of its input, "
                f"got shape {tuple(x.shape)}; layers that mix examples or put another axis first cannot be attributed"
            )
        return layer.rule.keep(layer.module, x, self.sides[layer.name][0])

    def on_gradient(self, layer: Layer, kept: Tensor, dy: Tensor) -> None:
        """Add this call's projected gradient."""
        self._calls.setdefault(layer.name, []).append(
            layer.rule.gradient(layer.module, kept, dy, self.sides[layer.name])
        )

    def take(self) -> dict[str, LayerGradient]:
        """The gradients of the batch just run; calls of one module are summed (pairs by joining their positions)."""
        merged = {name: _merge(calls) for name, calls in self._calls.items()}
        self._calls = {}
        return merged


def _merge(calls: list[LayerGradient]) -> LayerGradient:
    if len(calls) == 1:
        return calls[0]
    pairs = [call for call in calls if not isinstance(call, Tensor)]
    if pairs:
        return torch.cat([x for x, _ in pairs], 1), torch.cat([dy for _, dy in pairs], 1)
    return torch.stack([call for call in calls if isinstance(call, Tensor)]).sum(0)
