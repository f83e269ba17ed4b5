"""Accuracy and loss of a classifier on a split, with the uncertainty of the accuracy.

Axes: B rows of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from curation.errors import ModelError

# Two-sided 95 % quantile of the standard normal distribution.
Z95 = 1.959963984540054
# Enough to see what a model makes of a batch, few enough for a large encoder that is still on the CPU.
PROBED_ROWS = 2
# What a model raises on inputs that are not for it.
UNUSABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def evaluate(model: nn.Module, loader: Iterable[Sequence[Tensor]]) -> dict[str, float]:
    """Measure ``model`` in eval mode, without gradients, on every row of ``loader``; its modes are left as they were.

    Args:
        model: maps inputs to logits [B, K], or to an object that has them as ``.logits``; used where it lies.
        loader: yields ``(inputs, int64 codes [B])``.

    Returns:
        ``accuracy`` in [0, 1], ``accuracy_low`` and ``accuracy_high`` (95 % Wilson interval), ``loss`` (mean cross
        entropy, nats) and ``n`` (rows).

    Raises:
        ValueError: the loader has no rows.
    """
    correct, loss, rows = 0, 0.0, 0
    with measuring(model) as device:
        for inputs, targets in loader:
            targets = targets.to(device)
            logits = logits_of(model(inputs.to(device))).float()
            correct += int((logits.argmax(dim=1) == targets).sum())
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            rows += len(targets)
    if rows == 0:
        raise ValueError("evaluate: the loader has no rows; accuracy is undefined")
    low, high = wilson(correct, rows)
    return {
        "accuracy": correct / rows,
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": loss / rows,
        "n": rows,
    }


def check_batch(model: nn.Module, batch: Sequence[Tensor], num_classes: int | None = None) -> None:
    """Find out, on the first rows of a batch, whether ``model`` classifies what it is to be trained on.

    Args:
        model: as for :func:`evaluate`.
        batch: ``(inputs, int64 codes [B])``.
        num_classes: K, where it is known.

    Raises:
        ModelError: ``model`` fails on the inputs, or makes anything but logits [B, K].
    """
    least = int(batch[1].max()) + 1 if num_classes is None else num_classes
    inputs, targets = (part[:PROBED_ROWS] for part in batch)
    name, rows = type(model).__name__, f"rows of shape {list(inputs.shape[1:])}, {inputs.dtype}"
    try:
        with measuring(model) as device:
            logits = logits_of(model(inputs.to(device)))
    except UNUSABLE as error:
        raise ModelError(f"{name} fails on the data, {rows}: {type(error).__name__}: {error}") from error
    shape = list(logits.shape) if isinstance(logits, Tensor) else [type(logits).__name__]
    fits = len(shape) == 2 and shape[0] == len(targets)
    if not fits or (shape[1] < least if num_classes is None else shape[1] != least):
        raise ModelError(
            f"{name}: expected logits of shape {[len(targets), least]} for {len(targets)} {rows}, and {least} classes; got "
            f"{shape}. Check num_classes and what forward returns"
        )


@contextmanager
def measuring(model: nn.Module) -> Iterator[torch.device]:
    """Eval mode without gradients, and the device ``model`` is on; its modes are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    finally:
        for module, training in modes.items():
            module.training = training


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, or an object with ``.logits``."""
    return output if isinstance(output, Tensor) else output.logits


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, in [0, 1]."""
    share = successes / trials
    denominator = 1 + Z95**2 / trials
    centre = (share + Z95**2 / (2 * trials)) / denominator
    half = Z95 * sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)
