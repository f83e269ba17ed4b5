"""The Newton step as a way of unlearning: the last layer of a classifier without the records, all before it left as it was.

Axes: n records, m rows that stay, d inputs of the head (with its bias a column of ones), K classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from curation.errors import ModelError
from curation.mislabel.forward import Forward, forward_pass
from curation.unlearning.changes import Changes, weight_changes
from curation.unlearning.newton import newton_removal, predicted_error, size_problems
from curation.unlearning.rows import Rows

NEWTON = "newton"
"""Its name among the objectives."""
UNRELIABLE = 0.5
"""Of the step: a next one longer than this means that the loss is not quadratic that far."""


@dataclass(frozen=True)
class NewtonOptions:
    """What `objective: newton` takes.

    Attributes:
        l2: ridge on the head, of the loss summed over rows: what it was trained with, or a damping.
        steps: Newton steps; one is the paper's.
    """

    l2: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.l2 > 0:
            raise ValueError(f"l2: expected a number above 0, got {self.l2}")
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")


@dataclass(frozen=True)
class HeadStep:
    """What the step was; norms are of the head's weights, its bias among them.

    Attributes:
        head: name of the layer.
        parameters: of it.
        step: norm of the change.
        left: norm of the Newton step that would come next: what is left to the optimum.
        predicted_low: least error to be expected of so many records among so many rows.
        predicted_high: largest.
    """

    head: str
    parameters: int
    step: float
    left: float
    predicted_low: float
    predicted_high: float

    def warnings(self) -> list[str]:
        """What a person should know before relying on it."""
        if self.left <= UNRELIABLE * self.step:
            return []
        return [
            f"newton: the next step would be {self.left:.3g} long after one of {self.step:.3g}: the loss is far from quadratic "
            "there and the head is not where it would be without the records; raise unlearn.options.l2"
        ]


@dataclass(frozen=True)
class HeadUnlearned:
    """What a Newton step did to a model.

    Attributes:
        changes: of its weights.
        curve: before and after, as `curation.unlearning.module.Unlearning.curve`.
        step: the step itself.
        seconds: it took.
    """

    changes: Changes
    curve: list[dict[str, float]]
    step: HeadStep
    seconds: float


def check_head(model: nn.Module, batch: Any) -> str:
    """Find out, on a batch, whether a Newton step can be taken; gives the head's name.

    Raises:
        ModelError: the rows are no labelled ones, the logits are not a linear layer's, or it is too large.
    """
    if isinstance(batch, Mapping):
        raise ModelError(
            "unlearn.objective: newton is for classifiers; the head of a language model chooses among its whole vocabulary for "
            "every token, and its Hessian has (vocabulary x width) squared entries. Use npo or simnpo"
        )
    name = forward_pass(model, [batch]).names[-1]
    layer = _layer(model, name)
    problems = size_problems(layer.out_features, layer.in_features + (layer.bias is not None))
    if problems:
        raise ModelError(f"unlearn.objective: newton: {'; '.join(problems)}")
    return name


def unlearn_head(model: nn.Module, forget: Rows, retain: Rows, options: NewtonOptions) -> HeadUnlearned:
    """Take the records out of the head of ``model``, in place.

    Args:
        model: a classifier; every other layer stays as it is, and so what it learned from the records.
        forget: the records.
        retain: all rows that stay.
        options: ridge and number of steps.

    Raises:
        ModelError: as `check_head`.
        TrainingError: the head is too large, or nothing changed.
    """
    began = time.monotonic()
    name = check_head(model, forget.batch([0]))
    layer, device = _layer(model, name), next(model.parameters()).device
    going, staying = forward_pass(model, forget, device), forward_pass(model, retain, device)
    before = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    biased = layer.bias is not None
    features = torch.cat([_features(going, biased), _features(staying, biased)])  # [n + m, d]
    codes = torch.from_numpy(np.concatenate([going.labels, staying.labels]))
    weight = layer.weight.detach().cpu().double()
    if biased:
        weight = torch.cat([weight, layer.bias.detach().cpu().double()[:, None]], 1)  # [K, d]
    keep = torch.arange(len(codes)) >= len(forget)
    found = newton_removal(features, codes, weight, keep, options.l2, options.steps)
    with torch.no_grad():
        layer.weight.copy_(found.weight[:, : layer.in_features])
        if biased:
            layer.bias.copy_(found.weight[:, -1])
    low, high = predicted_error(features, len(weight), len(forget))
    step = HeadStep(name, weight.numel(), found.step, found.left, low, high)
    curve = [
        {"step": at, **_losses(features @ head.T, codes, keep)}  # [n + m, d] @ [d, K] -> [n + m, K]
        for at, head in ((0, weight), (options.steps, found.weight))
    ]
    return HeadUnlearned(weight_changes(before, model.state_dict()), curve, step, time.monotonic() - began)


def _layer(model: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, model.get_submodule(name))  # `forward_pass` takes nothing else for the head


def _features(seen: Forward, biased: bool) -> Tensor:
    """The head's inputs float64 [rows, d]."""
    found = torch.from_numpy(seen.features).double()
    return functional.pad(found, (0, 1), value=1.0) if biased else found


def _losses(logits: Tensor, codes: Tensor, keep: Tensor) -> dict[str, float]:
    losses = functional.cross_entropy(logits, codes, reduction="none")
    return {"forget_loss": float(losses[~keep].mean()), "retain_loss": float(losses[keep].mean())}
