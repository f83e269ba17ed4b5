"""Per-example weight gradients by a Python loop: one example, one backward pass.

Every gradient is laid out rows = input side, columns = output side, bias gradient as the LAST row:
  Linear     weight [out, in]                 -> [in (+ 1), out]
  Conv1D     weight [in, out] (Hugging Face)  -> [in + 1, out]
  Conv2d     weight [out, in/groups, kh, kw]  -> [in/groups * kh * kw (+ 1), out], rows in the order of F.unfold
  Embedding  weight [vocab, dim]              -> [vocab, dim], padding_idx row zero
  LayerNorm, RMSNorm, BatchNorm2d (eval)      -> [1 or 2, dim]: row 0 scale, row 1 shift
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]


def is_norm(module: nn.Module) -> bool:
    """A normalisation with a scale: torch's, or any class whose name ends in RMSNorm."""
    named = type(module).__name__.endswith("RMSNorm")
    return named or isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))


def per_example_gradients(model: nn.Module, loss_fn: Loss, examples: Sequence[Any], layer_name: str) -> Tensor:
    """Gradients of one layer, [N, in (+ 1), out] float64. ``examples``: batches of one; ``loss_fn`` gives a scalar."""
    return all_gradients(model, loss_fn, examples, [layer_name])[layer_name]


def all_gradients(
    model: nn.Module, loss_fn: Loss, examples: Sequence[Any], layer_names: Sequence[str]
) -> dict[str, Tensor]:
    """Gradients of several layers, {layer: [N, a, b]} float64; the model given is not touched."""
    rows: dict[str, list[Tensor]] = {name: [] for name in layer_names}
    twin = float64_twin(model, layer_names)
    for example in examples:
        twin.zero_grad(set_to_none=True)
        loss_fn(twin, to_float64(example)).backward()
        for name in layer_names:
            rows[name].append(arranged_gradient(twin.get_submodule(name)))
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


def float64_twin(model: nn.Module, layer_names: Sequence[str]) -> nn.Module:
    """A float64 copy in eval mode, every weight of it requiring a gradient.

    The named layers get weights of their own: where a weight is tied between two modules, a layer's gradient is that of
    its own use of the weight. A module that is called twice stays one layer, with one summed gradient.
    """
    twin = copy.deepcopy(model).double().eval()
    for name in layer_names:
        module = twin.get_submodule(name)
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(parameter.detach().clone()))
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    return twin


def to_float64(example: Any) -> Any:
    """The example with its floating point tensors in float64, integers as they are."""
    if isinstance(example, Tensor):
        return example.double() if example.is_floating_point() else example
    if isinstance(example, dict):
        return {key: to_float64(value) for key, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(to_float64(value) for value in example)
    return example


def arranged_gradient(module: nn.Module) -> Tensor:
    """``.grad`` of a module's own weights as one matrix [a, b]; a weight without gradient (an unused layer) is zero."""
    weight = gradient_of(module.weight)
    bias = None if getattr(module, "bias", None) is None else gradient_of(module.bias)
    if is_norm(module):
        rows = [weight.flatten()]  # scale [dim]
    elif isinstance(module, nn.Embedding):
        rows = list(weight)  # [vocab, dim], as it is
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        rows = list(weight)  # [in, out], as it is
    elif isinstance(module, nn.Linear):
        rows = list(weight.T)  # [out, in] -> [in, out]
    elif isinstance(module, nn.Conv2d):
        out, *patch = weight.shape  # patch = in/groups, kh, kw: channel-major as F.unfold
        rows = [weight[:, i, y, x] for i in range(patch[0]) for y in range(patch[1]) for x in range(patch[2])]
    else:
        raise TypeError(f"the oracle has no arrangement for {type(module).__name__}")
    if bias is not None:
        rows.append(bias.flatten())  # X has a column of ones behind the inputs: its row is the sum of dY over positions
    return torch.stack(rows)  # [a, b]


def gradient_of(parameter: Tensor) -> Tensor:
    """``.grad`` [like the parameter], zero where backward left none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
