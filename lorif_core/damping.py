"""lambda of each layer: a multiple of one of four scales, or chosen from the index alone.

Axes: N training examples, n of them sampled, D a layer's flattened gradient, r curvature rank.

`auto` is the sum of two parts.

1. The lambda whose inverse comes nearest to C^-1, C the second moment that the gradients are drawn from (not the one they
   happen to have). With P = N (G^T G + lambda I)^-1 and distances measured where gradients lie,

       |C^1/2 (P - C^-1) C^1/2|^2 = E (g^T P g')^2 - 2 E g^T P g + D,    g, g' independent of each other and of P,

   so every term is a mean of scores: between two examples, and of an example with itself. Each is taken with the examples it
   is about left out of G (leave-one-out cross-validation in closed form, from the leverages). A direction seen in few
   examples costs when it is inverted too boldly (large scores between strangers) and when it is damped away (small own
   scores); nothing depends on how many directions without any gradient the layer has. Heavy tails, where few examples make
   most of G^T G, ask for more damping, and so do truncated curvatures, whose background 1 / lambda stands for directions that
   do have energy.
2. What rank-c factors lost. With e_i the lost part of a gradient, sum_i e_i e_i^T is missing in G^T G, though the query, which
   is whole, meets those directions. Lost parts of different examples have no direction in common that factors could have
   kept, so they are taken to be spread evenly over as many as there can be: sum_i |e_i|^2 / min(N, D) in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorif_core.options import AUTO, CurvatureOptions

SAMPLE = 2048
"""n: examples whose mutual scores are compared, evenly spaced; few make most of heavy-tailed ones, so all where possible."""
MULTIPLIERS: list[float] = [2.0**k for k in range(-10, 8)]
"""lambda / (trace(GtG) / N) tried first; then `REFINED` steps between the best one's neighbours."""
REFINED = 8
LEAST_LEFT = 1e-12
"""Of 1 - leverage: an example that alone holds a direction up cannot be judged without it, and must not divide by zero."""


@dataclass(frozen=True)
class Sampled:
    """What `auto` needs of n examples of one layer; float64."""

    gram: Tensor
    """Dot products [n, n]."""
    coordinates: Tensor
    """V^T g [n, r], V the curvature's directions."""
    spanned: bool
    """Whether V spans all stored gradients."""


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


def chosen_damping(sampled: Sampled, values: Tensor, examples: int, mean_norm: float) -> float:
    """The lambda of `auto` for the gradients as they are stored (part 1).

    Args:
        sampled: some of the stored examples.
        values: S^2 [r], the curvature's squared singular values.
        examples: N.
        mean_norm: trace(GtG) / N > 0, the scale of the search.
    """

    def cost(multiplier: float) -> float:
        return distance(sampled, values.double(), examples, multiplier * mean_norm)

    best = min(MULTIPLIERS, key=cost)
    return mean_norm * min((best * 4 ** (k / REFINED - 0.5) for k in range(1, REFINED)), key=cost)


def lost_damping(whole: float, stored: float, examples: int, size: int) -> float:
    """The lambda that stands for what factors lost (part 2), from the sums of squared norms before and after."""
    return max(0.0, whole - stored) / min(examples, size)


def distance(sampled: Sampled, values: Tensor, examples: int, damping: float) -> float:
    """N E s(g, g')^2 - 2 E s(g, g) with s the held-out scores g^T H^-1 g': the module's distance - D, over N."""
    scores = held_out_scores(sampled, values, damping)
    own, count = scores.diagonal(), len(scores)
    between = (scores.square().sum() - own.square().sum()) / (count * (count - 1))
    return float(examples * between - 2 * own.mean())


def held_out_scores(sampled: Sampled, values: Tensor, damping: float) -> Tensor:
    """g_i^T H^-1 g_j [n, n] with the rows i and j left out of G in H = V S^2 V^T + lambda I, V itself as it is.

    With p = G V (S^2 + lambda)^-1 V^T G^T the score inside V is p (I - p)^-1 of the two rows alone (Woodbury), for i = j that
    is h / (1 - h), h the leverage. What lies outside V never was in H.
    """
    coordinates = sampled.coordinates
    inside = (coordinates / (values + damping)) @ coordinates.T  # [n, r] @ [r, n] -> [n, n]
    left = (1 - inside.diagonal()).clamp_min(LEAST_LEFT)  # 1 - h
    scores = inside / (left.unsqueeze(1) * left - inside.square()).clamp_min(LEAST_LEFT**2)
    scores.diagonal().copy_(inside.diagonal() / left)
    if not sampled.spanned:
        scores = scores + (sampled.gram - coordinates @ coordinates.T) / damping
    return scores


def evenly_spaced(examples: int, count: int) -> Tensor:
    """At most `count` positions among `examples`, int64, first and last included."""
    return torch.linspace(0, examples - 1, min(count, examples), dtype=torch.float64).round().long()
