"""lambda of each layer: a multiple of one of four scales, or chosen from the index alone.

Axes: N training examples, n of them sampled, D a layer's flattened gradient, r curvature rank.

`auto` is the sum of three parts.

1. The lambda whose inverse ranks training rows as M^-1 would, M the second moment of the directions that gradients are drawn
   from, E q q^T / |q|^2 (not of the ones they happen to have): as it is used, for a query that is no training row, against
   training rows that are in the curvature. Neither the scale of a query's scores nor the norm of its gradient means
   anything, so that it is the angle that counts. With P = (G^T G + lambda I)^-1 and g a row of G, the cosine of scores
   q^T P g with the ideal ones q^T M^-1 g, each q weighted by 1 / |q|^2, is

       E g^T P g / sqrt(E (q^T P g)^2 / |q|^2) * const,    as E q q^T / |q|^2 M^-1 = I.

   Rows play both parts. As a query, a row is left out of G (in closed form, from its leverage); as a training row it is
   not: to leave that out too overstates how far scores of rows are off. A direction seen in few examples costs when it is
   inverted too boldly (large scores of strangers) and when it is damped away (small own scores). The sum over all rows is
   diagonal in the curvature's basis: nothing but the rows' coordinates is needed. Nothing depends on how many directions
   without any gradient the layer has. Without the weights 1 / |q|^2 and with the scale, as a squared distance, the few
   examples with nearly all of the energy (of a model that has fitted the rest) would ask that their own directions be
   inverted.
2. What a truncated curvature left out. Its directions were chosen to hold as much of these rows as they can, so that a query
   has more outside than the rows show: the mean of the eigenvalues left out (as in probabilistic PCA) is added.
3. What rank-c factors lost. With e_i the lost part of a gradient, sum_i e_i e_i^T is missing in G^T G, though the
   query, which is whole, meets those directions. If it were spread as what was kept is, G^T G would have but another scale,
   and nothing would be to add; if evenly over as many directions as there can be, sum_i |e_i|^2 / min(N, D). Neither is
   known; this takes the middle. What codes lost is spread like that, as turned projections make them alike in all
   directions (of identity projections and heavy tails, some of it counts as lost to factors).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorif_core.codecs import kept_norm
from lorif_core.manifest import LayerEntry
from lorif_core.options import AUTO, CurvatureOptions
from lorif_core.store import FactorStore

SAMPLE = 2048
"""n: examples that are left out in turn, evenly spaced; few make most of heavy-tailed ones, so all where possible."""
MULTIPLIERS: list[float] = [2.0**k for k in range(-10, 8)]
"""lambda / (trace(GtG) / N) tried first; then `REFINED` steps between the best one's neighbours."""
REFINED = 8
LEAST_LEFT = 1e-12
"""Of 1 - leverage: an example that alone holds a direction up cannot be judged without it, and must not divide by zero."""


@dataclass(frozen=True)
class Sampled:
    """What `auto` needs of n examples of one layer; float64."""

    squares: Tensor
    """(V^T g)^2 [n, r], V the curvature's directions."""
    outside: Tensor
    """|g - V V^T g|^2 [n], zero where V spans all stored gradients."""
    shared: Tensor
    """Sum over the N - 1 other examples of the squared dot products of the parts outside V [n]; from those sampled."""


def damping_for(
    store: FactorStore,
    layer: LayerEntry,
    options: CurvatureOptions,
    trace: float,
    mean: float,
    sample: Callable[[], tuple[Sampled, Tensor]],
) -> float:
    """Lambda of a layer.

    Args:
        store: the index.
        layer: one of its.
        options: the rule, or `auto`.
        trace: of G^T G.
        mean: of the computed squared singular values.
        sample: some rows and the squared singular values kept, asked only where lambda is to be chosen.
    """
    examples = len(store)
    if options.damping != AUTO:
        return damping_of(options, trace, examples, layer.size, mean)
    if trace == 0 or examples == 1:  # nothing to choose by: H^-1 = I, or an example that has no others
        return trace or 1.0
    rows, kept = sample()
    best = chosen_damping(rows, kept, trace / examples) + left_out_damping(trace, kept, examples, layer.size)
    before = trace / kept_norm(layer, store.manifest.bits)  # it was coded
    return best + lost_damping(store.manifest.energy(layer.name), before, examples, layer.size)


def sampled(coordinates: Tensor, gram: Tensor | None, examples: int) -> Sampled:
    """Of n examples, evenly spaced.

    Args:
        coordinates: V^T g [n, r].
        gram: dot products [n, n]; None where V spans all stored gradients.
        examples: N.
    """
    none = coordinates.new_zeros(len(coordinates))
    if gram is None:
        return Sampled(coordinates.square(), none, none)
    rest = gram - coordinates @ coordinates.T  # [n, r] @ [r, n] -> [n, n]
    outside = rest.diagonal().clamp_min(0)
    others = (rest.square().sum(1) - rest.diagonal().square()) * ((examples - 1) / max(len(rest) - 1, 1))
    return Sampled(coordinates.square(), outside, others)


def damping_of(options: CurvatureOptions, trace: float, examples: int, size: int, mean_value: float) -> float:
    """Lambda by a rule; a layer without any gradient gets the multiplier, so that its scores are zero and not NaN.

    Args:
        options: the rule and its multiplier, a number.
        trace: of G^T G.
        examples: N.
        size: D.
        mean_value: mean of the r + p largest squared singular values.
    """
    if isinstance(options.damping, str):
        raise TypeError("a rule needs a number for its multiplier; `auto` is `chosen_damping`")
    scale = {
        "mean_norm": trace / examples,
        "trace": trace / size,
        "paper": mean_value,
        "absolute": 1.0,
    }[options.damping_rule]
    return float(options.damping * (scale or 1.0))


def rescaled(kept: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float] | None:
    """Each layer's lambda for a kept curvature, where it differs from the wanted one in nothing but the multiplier.

    A chosen lambda is no multiple of a rule's: between `auto` and a number the curvature is fitted anew.

    Args:
        kept: the manifest's record, `options`, `data` and `damping`; empty where there is none.
        wanted: `options` and `data`.
    """
    if not kept:
        return None
    old, new = kept["options"]["damping"], wanted["options"]["damping"]
    if (old == AUTO) != (new == AUTO) or kept | {"options": kept["options"] | {"damping": new}} != kept | wanted:
        return None
    scale = 1.0 if new == AUTO else new / old
    return {name: scale * value for name, value in kept["damping"].items()}


def chosen_damping(rows: Sampled, values: Tensor, mean_norm: float) -> float:
    """The lambda of `auto` for the gradients as they are stored (part 1).

    Args:
        rows: some of the stored examples.
        values: S^2 [r], the curvature's squared singular values.
        mean_norm: trace(GtG) / N > 0, the scale of the search.
    """

    def cost(multiplier: float) -> float:
        return spread(rows, values.double(), multiplier * mean_norm)

    def order(multiplier: float) -> tuple[float, float]:
        """Where all are as good, as with rows at right angles, or nothing is known, the middle of the search."""
        return cost(multiplier), abs(math.log(multiplier))

    if not bool((rows.squares.sum(1) + rows.outside > 0).any()):  # rows that are all zero ask nothing
        return mean_norm
    best = min(MULTIPLIERS, key=order)
    return mean_norm * min((best * 4 ** (k / REFINED - 0.5) for k in range(1, REFINED)), key=order)


def left_out_damping(trace: float, values: Tensor, examples: int, size: int) -> float:
    """The mean eigenvalue of G^T G outside V (part 2), zero where V is all of it."""
    outside = min(examples, size) - len(values)
    return max(0.0, trace - float(values.double().sum())) / outside if outside else 0.0


def lost_damping(whole: float, stored: float, examples: int, size: int) -> float:
    """The lambda that stands for what factors lost (part 3), from the sums of squared norms before and after factoring."""
    return 0.5 * max(0.0, whole - stored) / min(examples, size)


def spread(rows: Sampled, values: Tensor, damping: float) -> float:
    """E sum_j (q_i^T H^-1 g_j)^2 / |q_i|^2 over (E g_j^T H^-1 g_j)^2, H = V S^2 V^T + lambda I without row i where q_i is that.

    The square of the module's cosine is a multiple of 1 / this. j runs over all rows but i, V is as it is. With
    h = g^T V (S^2 + lambda)^-1 V^T g the leverage, a score inside V without row i is the one with it over 1 - h_i (Woodbury),
    and the sum over all j is diagonal, V^T G^T G V = S^2. What lies outside V never was in H. A row that is zero asks nothing.
    """
    inverse = 1 / (values + damping)
    inside = rows.squares @ inverse  # h [n]
    left = (1 - inside).clamp_min(LEAST_LEFT)
    outside = rows.outside / damping
    all_rows = rows.squares @ (values * inverse.square())  # [n, r] @ [r] -> [n]
    others = (all_rows - inside.square()).clamp_min(0)  # what rounding leaves of one row's own is no gain
    between = others / left.square() + rows.shared / damping**2 - 2 * inside / left * outside
    norms = rows.squares.sum(1) + rows.outside
    asked = norms > 0
    return float((between[asked] / norms[asked]).sum() / len(norms) / (inside + outside).mean().square())


def evenly_spaced(examples: int, count: int) -> Tensor:
    """At most `count` positions among `examples`, int64, first and last included."""
    return torch.linspace(0, examples - 1, min(count, examples), dtype=torch.float64).round().long()
