"""How much each record's gradient points where the mean gradient of what stays does: the scores behind GUARD's weights.

Axes: n records to forget, m rows that stay, N rows of an index, D a layer's flattened projected gradient.

    a_i = <g_i, v>,   v = (1 / m) sum_r g_r,   g the gradient of a row's loss, a mean over its tokens.

a_i > 0 means that the record and the rest pull the same way, so that unlearning it costs the rest. Four ways to the same
numbers, none with a gradient of one record at a time:

- `by_factors`: dot products of what a LoRIF index holds; no pass over the model. Exact where the index is of whole gradients
  (projection identity, every layer, full rank); otherwise of their projection, a proxy.
- `activations.by_activations`: exact, from a pass that computes gradients of activations only; norms, and so cosines, too.
- `by_two_forwards`: (l_i(theta + e v) - l_i(theta - e v)) / 2 e, two forward passes over the records. In float32 no step is
  both above rounding and below the curvature of a model that knows its rows by heart: off by half and more there.
- `by_forward_mode`: the same derivative without a step width, one pass at about three times a forward one's price; every
  operation of the model must have a forward-mode derivative.

The latter two take one backward pass over the rows that stay (or some of them) for v, and one over the records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from curation.errors import CurationError
from curation.unlearning.sequences import predict
from lorif_core.capture import frozen
from lorif_core.objectives import Batch, batch_rows, to_device
from lorif_core.store import FactorStore

Way = Literal["factors", "two_forwards", "forward_mode", "activations"]
BLOCK_NUMBERS = 2**22
"""Floats of an index's rows made dense at once."""
ROUNDING_SHARE = 1 / 3
"""The step of two forwards is eps ** this of the weights' norm: rounding and curvature then err about equally."""


class AlignmentError(CurationError):
    """The alignments cannot be computed in the way that was asked for."""


@dataclass(frozen=True)
class Alignment:
    """The scores of n records.

    Attributes:
        values: a, float64 [n]; positive = unlearning the record costs what stays. With ``cosine`` in [-1, 1].
        opposition: cosine of the records' mean gradient and v; near -1 where the model stands still between the two.
        way: how they were found.
    """

    values: np.ndarray
    opposition: float
    way: Way


def by_factors(
    store: FactorStore, forget: np.ndarray, retain: np.ndarray, tokens: np.ndarray, *, cosine: bool = False
) -> Alignment:
    """From the stored gradients of an index.

    Args:
        store: the index.
        forget: positions of the records, int [n], without repetition.
        retain: positions of rows that stay, int [m].
        tokens: what each row's stored loss was summed over, int [N]; ones for a classifier.
        cosine: divide by the norms of both gradients.

    Raises:
        AlignmentError: positions outside the index, or none.
    """
    for name, positions in (("forget", forget), ("retain", retain)):
        if not len(positions) or positions.min() < 0 or positions.max() >= len(store):
            raise AlignmentError(
                f"{name}: expected positions among the {len(store)} rows of {store.path}, got {positions}"
            )
    share = torch.from_numpy(1.0 / np.asarray(tokens, dtype=np.float64))  # [N]: from summed to mean losses
    staying, going = torch.zeros(len(store), dtype=torch.float64), torch.zeros(len(store), dtype=torch.float64)
    staying[retain], going[forget] = share[retain] / len(retain), share[forget] / len(forget)
    dots = torch.zeros(len(store), dtype=torch.float64)
    squares = torch.zeros_like(dots)
    norm_v, norm_f, between = 0.0, 0.0, 0.0
    for layer in store.manifest.layers:
        rows = max(1, BLOCK_NUMBERS // layer.size)
        v, f = torch.zeros(layer.size, dtype=torch.float64), torch.zeros(layer.size, dtype=torch.float64)
        for block in store.blocks(layer.name, rows):
            part = slice(block.start, block.start + len(block))
            dense = block.dense(v.device, torch.float64)
            v += staying[part] @ dense  # [rows] @ [rows, D] -> [D]
            f += going[part] @ dense
        for block in store.blocks(layer.name, rows):
            part = slice(block.start, block.start + len(block))
            dots[part] += block.dense(v.device, torch.float64) @ v  # [rows, D] @ [D] -> [rows]
            squares[part] += block.squared_norms()
        norm_v, norm_f, between = norm_v + float(v @ v), norm_f + float(f @ f), between + float(f @ v)
    values = (dots * share)[forget]
    if cosine:
        norms = (squares.sqrt() * share)[forget] * norm_v**0.5
        values = values / norms.clamp_min(torch.finfo(torch.float64).tiny)
    return Alignment(values.numpy(), _cosine(between, norm_v, norm_f), "factors")


def by_two_forwards(model: nn.Module, forget: Iterable[Batch], retain: Iterable[Batch]) -> Alignment:
    """From two forward passes over the records, with the weights moved a little along v and against it.

    Args:
        model: left as it was; float32 is precise to about 1e-3, float64 to 1e-6.
        forget: batches of the records, in order; read three times.
        retain: batches of rows that stay; read once.
    """
    with frozen(model):
        v, f = mean_gradient(model, retain), mean_gradient(model, forget)
        norm = _norm(v.values())
        if norm == 0:
            return Alignment(np.zeros(_rows(forget)), 0.0, "two_forwards")
        weights = [p for p in model.parameters() if p.is_floating_point()]
        size = _norm(weights)
        step = torch.finfo(weights[0].dtype).eps ** ROUNDING_SHARE * max(size, 1.0) / norm
        found = []
        for sign in (1.0, -1.0):
            with moved(model, v, sign * step), torch.no_grad():
                found.append(torch.cat([predict(model, _on(model, batch)).mean().double().cpu() for batch in forget]))
        values = (found[0] - found[1]) / (2 * step)
        return Alignment(values.numpy(), _cosine(float(values.mean()), norm**2, _norm(f.values()) ** 2), "two_forwards")


def by_forward_mode(model: nn.Module, forget: Iterable[Batch], retain: Iterable[Batch]) -> Alignment:
    """From one forward pass over the records that carries its derivative along v.

    Args:
        model: left as it was; attention runs in its plain form.
        forget: batches of the records, in order; read twice.
        retain: batches of rows that stay; read once.

    Raises:
        AlignmentError: an operation of the model has no forward-mode derivative.
    """
    with frozen(model):
        v, f = mean_gradient(model, retain), mean_gradient(model, forget)
        parts = []
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), forward_ad.dual_level():
            weights = {name: _dual(p, v[name]) if name in v else p for name, p in model.named_parameters()}
            for batch in forget:
                try:
                    losses = predict(_WithWeights(model, weights), _on(model, batch)).mean()
                except NotImplementedError as error:
                    raise AlignmentError(
                        f"the model has an operation without a forward-mode derivative ({str(error).splitlines()[0]}); "
                        "use two_forwards"
                    ) from error
                tangent = _tangent(losses)
                parts.append(torch.zeros(len(losses)) if tangent is None else tangent.detach().cpu())
        values = torch.cat(parts).double()
    return Alignment(
        values.numpy(), _cosine(float(values.mean()), _norm(v.values()) ** 2, _norm(f.values()) ** 2), "forward_mode"
    )


def mean_gradient(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The gradient of the mean over rows of each row's mean loss, by parameter; of those that take part in it.

    Raises:
        AlignmentError: no rows.
    """
    parameters = dict(model.named_parameters())
    flags = {name: p.requires_grad for name, p in parameters.items()}
    total = {name: torch.zeros_like(p) for name, p in parameters.items() if p.is_floating_point()}
    rows = 0
    try:
        for name in total:
            parameters[name].requires_grad_(True)
        with torch.enable_grad():
            for batch in batches:
                rows += batch_rows(batch)
                loss = predict(model, _on(model, batch)).mean().sum()
                grads = torch.autograd.grad(loss, [parameters[name] for name in total], allow_unused=True)
                for name, grad in zip(total, grads, strict=True):
                    if grad is not None:
                        total[name] += grad
    finally:
        for name, flag in flags.items():
            parameters[name].requires_grad_(flag)
    if not rows:
        raise AlignmentError("expected rows to take a mean gradient of, got none")
    return {name: grad / rows for name, grad in total.items()}


@contextmanager
def moved(model: nn.Module, direction: dict[str, Tensor], step: float) -> Iterator[None]:
    """The model's weights a step along a direction, for the length of the block."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in direction}
    try:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in direction:
                    p.add_(direction[name], alpha=step)
        yield
    finally:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in before:
                    p.copy_(before[name])


class _WithWeights(nn.Module):
    """A model with other weights in the place of its own."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._own = [(model, weights)]  # in a list, so that the model is no part of this one

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        model, weights = self._own[0]
        return torch.func.functional_call(model, weights, args, kwargs)


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return dual


def _tangent(dual: Tensor) -> Tensor | None:
    found: Tensor | None = forward_ad.unpack_dual(dual).tangent  # type: ignore[no-untyped-call]
    return found


def _on(model: nn.Module, batch: Batch) -> Batch:
    return to_device(batch, next(model.parameters()).device)


def _rows(batches: Iterable[Batch]) -> int:
    return sum(batch_rows(batch) for batch in batches)


def _norm(parts: Iterable[Tensor]) -> float:
    return math.hypot(*(float(part.detach().double().norm()) for part in parts))


def _cosine(dot: float, square: float, other: float) -> float:
    return dot / (square * other) ** 0.5 if square * other > 0 else 0.0
