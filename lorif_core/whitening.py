"""kfac projections: two-sided, and whitening, so that a plain dot product is the preconditioned score.

Axes: a / b input and output side of a layer, d1 / d2 their projected sizes.

A layer's Fisher matrix is approximated by A (x) S, A [a, a] the second moment of its inputs and S [b, b] that of its output
gradients, with labels drawn from the model's own predictions (K-FAC). As (A + l I)^-1 (x) (S + l' I)^-1 is symmetric, half of
it goes to the query and half to the stored gradient, both of which go through one projection:

    g_q^T (A + l)^-1 (x) (S + l')^-1 g_i = <W_A^T G_q W_S, W_A^T G_i W_S>,   W_A = U (L + l)^-1/2,   A = U L U^T.

A projection factor keeps the columns of W_A, W_S of the largest eigenvalues. Ids have a diagonal A, their share among the
positions. Layers of which only the whole gradient is known (scales, groups) are whitened by its own two second moments.

Whitened gradients have no few directions that outweigh the rest, which is also what rank-c factors are best for: `whitened`
fits a curvature to them as LoRIF does, with lambda relative to A (x) S in place of I. Choose it where gradients are factored
and a curvature can be afforded, and `kfac` where no curvature can be (`tests.benchmarks.damping` has the figures). Its best
lambda can be far from the default (fifty times it for vectors of a model that has fitted nearly all its examples, where few
of them have nearly all of G^T G): take damping="auto".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorif_core.layers import Layer, OneHotRule, WholeRule
from lorif_core.lookup import Lookup, commonest
from lorif_core.moments import Moments
from lorif_core.projections import Projections, Sizes, rotation, top_eigenpairs

WHITENED = ("kfac", "kfac_true", "whitened")
"""Whitening projections: of sampled labels, of the true ones, and of the true ones with a curvature on top."""
PRECONDITIONED = ("kfac", "kfac_true")
"""Those after which a plain dot product is the score."""
POSITIONS = 2**16
POSITIONS_A_SIDE = 16
"""Positions the moments are estimated from: an inverse needs more of them than the leading directions do."""
DAMPING = 0.1
"""l of a side, in units of the mean eigenvalue of its second moment."""


def kfac(layers: Sequence[Layer], moments: Moments, kind: str, sizes: Sizes) -> Projections:
    """Whitening projections.

    Args:
        layers: the layers to project.
        moments: of sampled or of true labels.
        kind: the projection's name, one of `WHITENED`.
        sizes: of their projected gradients.
    """
    return Projections(kind, {layer.name: _sides(layer, moments, *sizes[layer.name]) for layer in layers})


def _sides(layer: Layer, moments: Moments, d1: int, d2: int) -> tuple[Tensor | Lookup, Tensor]:
    """(W_A [a, d1], W_S [b, d2]); A (x) S is the mean over examples of the summed gradients' second moment."""
    inputs, outputs = moments.sums[f"in.{layer.name}"], moments.sums[f"out.{layer.name}"]
    whole = isinstance(layer.rule, WholeRule)
    inputs = inputs / moments.examples
    trace = max(float(outputs.trace()), torch.finfo(outputs.dtype).tiny)
    outputs = outputs / (trace if whole else moments.positions[layer.name])
    if isinstance(layer.rule, OneHotRule):
        chosen = commonest(inputs, d1, layer.rule.padding(layer.module))
        return Lookup(chosen.codes, d1, inverse_root(inputs)), whitening(outputs, d2, f"out.{layer.name}")
    return whitening(inputs, d1, f"in.{layer.name}"), whitening(outputs, d2, f"out.{layer.name}")


def whitening(moment: Tensor, d: int, name: str) -> Tensor:
    """U_d (L_d + l)^-1/2 R [n, d] of the d largest eigenvalues L of a moment [n, n], R orthogonal; float32."""
    values, vectors = top_eigenpairs(moment, d)
    scale = inverse_root(values, mean=float(moment.trace()) / len(moment))
    whitened: Tensor = (vectors * scale).float() @ rotation(name, d).to(moment.device)  # [n, d] @ [d, d]
    return whitened.contiguous()


def inverse_root(values: Tensor, mean: float | None = None) -> Tensor:
    """(L + l)^-1/2 of eigenvalues [n], l = `DAMPING` times their mean, float32; zero of a moment that is zero."""
    damping = DAMPING * (float(values.mean()) if mean is None else mean)
    if damping == 0:
        return torch.zeros_like(values, dtype=torch.float32)
    return (values.clamp_min(0) + damping).rsqrt().float()
