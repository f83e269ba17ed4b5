"""Alignments and gradient norms of records, from passes that compute gradients of activations only.

Axes: n records to forget, m rows that stay, B rows of a batch, T positions, a / b input and output side of a layer.

A layer's gradient of one record is X^T dY, so that with V [a, b] the mean gradient of what stays

    <G, V> = sum_t x_t^T V dy_t,    |G|^2 = sum_ts (x_t . x_s) (dy_t . dy_s),

and neither needs G itself. One such pass over the rows that stay, for V, and one over the records: less than a step of
unlearning on as many rows, so that weights can be renewed, by cosine too, while a model is unlearned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from curation.unlearning.alignment import Alignment, AlignmentError
from curation.unlearning.sequences import predict
from lorif_core.capture import frozen
from lorif_core.contraction import LayerGradient, energy
from lorif_core.coverage import cover
from lorif_core.gradients import GradientPlan
from lorif_core.lookup import Rows as SparseRows
from lorif_core.objectives import Batch
from lorif_core.probe import probe
from lorif_core.projections import identity


def plan_of(model: nn.Module, rows: Iterable[Batch]) -> GradientPlan:
    """How gradients are taken of a model, whatever its weights; for `by_activations` of the same model again and again.

    Args:
        model: every layer with parameters must be one that `lorif_core` attributes.
        rows: of which the first few are run.

    Raises:
        AlignmentError: a layer's gradient is not known.
    """
    with frozen(model):
        try:
            seen = probe(model, _losses, cover(model), rows, next(model.parameters()).device, strict=True)
        except ValueError as error:
            raise AlignmentError(f"{error}\nUse two_forwards, which needs the losses only") from error
    layers = seen.coverage.layers
    return GradientPlan(layers, identity(layers), seen.shared, seen.modified)


def by_activations(
    model: nn.Module,
    forget: Iterable[Batch],
    retain: Iterable[Batch],
    *,
    cosine: bool = False,
    plan: GradientPlan | None = None,
) -> Alignment:
    """Of the records under the model as it is.

    Args:
        model: left as it was.
        forget: batches of the records, in order.
        retain: batches of rows that stay.
        cosine: divide by the norms of both gradients.
        plan: what `plan_of` gave for the model; None: found anew.

    Raises:
        AlignmentError: a layer's gradient is not known, or there are no rows.
    """
    plan = plan or plan_of(model, forget)
    with frozen(model), plan.open(model) as gradients:
        staying: dict[str, Tensor] = {}
        going: dict[str, Tensor] = {}
        rows = 0
        for batch in retain:
            losses, found = gradients(_losses, batch)
            rows += len(losses)
            _add(staying, found)
        if not rows:
            raise AlignmentError("expected rows to take a mean gradient of, got none")
        v = {name: total / rows for name, total in staying.items()}
        dots, squares = [], []
        for batch in forget:
            _, found = gradients(_losses, batch)
            _add(going, found)
            dots.append(torch.stack([_dot(found[name], v[name]) for name in v]).sum(0))  # [layers, B] -> [B]
            squares.append(torch.stack([energy(found[name]) for name in v]).sum(0))
    values, norms = torch.cat(dots).double().cpu(), torch.cat(squares).double().cpu().clamp_min(0).sqrt()
    norm_v, norm_f = _norm(v), _norm(going) / len(values)
    opposed = norm_v * norm_f
    opposition = float(values.mean()) / opposed if opposed else 0.0
    if cosine:
        values = values / (norms * norm_v).clamp_min(torch.finfo(torch.float64).tiny)
    return Alignment(values.numpy(), opposition, "activations")


def is_covered(model: nn.Module) -> bool:
    """Whether every layer with parameters is one whose gradient is known."""
    return not cover(model, strict=False).left_out


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    return predict(model, batch).mean()


def _add(total: dict[str, Tensor], found: dict[str, LayerGradient]) -> None:
    """The sum over a batch's rows of each layer's gradients [a, b]."""
    for name, gradient in found.items():
        added = _summed(gradient)
        total[name] = total[name] + added if name in total else added


def _summed(gradient: LayerGradient) -> Tensor:
    if isinstance(gradient, SparseRows):
        whole = gradient.values.new_zeros(gradient.width, gradient.values.shape[2])
        return whole.index_add_(0, gradient.columns.flatten(), gradient.values.flatten(0, 1))
    if isinstance(gradient, Tensor):
        return gradient.sum(0)
    x, dy = gradient
    return x.flatten(0, 1).T @ dy.flatten(0, 1)  # [a, B T] @ [B T, b] -> [a, b]


def _dot(gradient: LayerGradient, v: Tensor) -> Tensor:
    """<G_i, V> [B]."""
    if isinstance(gradient, SparseRows):
        return (gradient.values * v[gradient.columns]).sum((1, 2))
    if isinstance(gradient, Tensor):
        return (gradient * v).sum((1, 2))
    x, dy = gradient
    return ((x @ v) * dy).sum((1, 2))  # [B, T, a] @ [a, b] -> [B, T, b]


def _norm(parts: dict[str, Tensor]) -> float:
    return math.hypot(*(float(part.double().norm()) for part in parts.values()))
