"""The two sides of a layer gradient, X [T, a] and dY [T, b], and their uncentred token covariances.

A second route to the gradient (G = X^T dY), and what the pca projections are made of. Linear and Hugging Face Conv1D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracle.gradients import Loss, float64_twin, to_float64


def captured_calls(model: nn.Module, loss_fn: Loss, example: Any, layer_name: str) -> list[tuple[Tensor, Tensor]]:
    """(layer input, loss gradient at the layer output) of every call of one layer, batch of one, float64.

    The output gradient is read from a zero tensor added to the output, so in-place operations behind it do no harm.
    """
    twin = float64_twin(model, [layer_name])
    calls: list[tuple[Tensor, Tensor]] = []

    def add_probe(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        probe = torch.zeros_like(output, requires_grad=True)
        calls.append((inputs[0].detach().clone(), probe))
        return output + probe

    handle = twin.get_submodule(layer_name).register_forward_hook(add_probe)
    loss_fn(twin, to_float64(example)).backward()
    handle.remove()
    return [(x, torch.zeros_like(probe) if probe.grad is None else probe.grad) for x, probe in calls]


def token_rows(model: nn.Module, loss_fn: Loss, example: Any, layer_name: str) -> tuple[Tensor, Tensor]:
    """X [T, in (+ 1)] and dY [T, out] of one example, all calls of the layer behind each other."""
    has_bias = getattr(model.get_submodule(layer_name), "bias", None) is not None
    inputs, outputs = [], []
    for x, dy in captured_calls(model, loss_fn, example, layer_name):
        x = x.reshape(-1, x.shape[-1])  # [T, in]
        inputs.append(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1) if has_bias else x)
        outputs.append(dy.reshape(-1, dy.shape[-1]))  # [T, out]
    return torch.cat(inputs), torch.cat(outputs)


def token_covariances(
    model: nn.Module, loss_fn: Loss, examples: Sequence[Any], layer_name: str
) -> tuple[Tensor, Tensor]:
    """Uncentred covariances over all tokens of all examples: E[x x^T] [a, a] and E[dy dy^T] [b, b]."""
    in_sum, out_sum, count = 0.0, 0.0, 0
    for example in examples:
        inputs, outputs = token_rows(model, loss_fn, example, layer_name)
        for x, dy in zip(inputs, outputs, strict=True):
            in_sum = in_sum + torch.outer(x, x)
            out_sum = out_sum + torch.outer(dy, dy)
            count += 1
    return in_sum / count, out_sum / count
