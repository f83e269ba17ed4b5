"""Where unlearning starts: at the model, or part of the way back from it to fresh weights (shrink and perturb, arXiv 1910.08475).

What is only hidden comes back when some of it is learned again; weights that are partly new have less to bring back.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def shrink(model: nn.Module, fresh: nn.Module, kept: float) -> None:
    """Make every trained weight of ``model`` kept w + (1 - kept) w_fresh, in place.

    Args:
        model: its parameters that require no gradient stay as they are.
        fresh: of the same kind, not trained.
        kept: share of the old weights, in (0, 1].

    Raises:
        ValueError: the share is out of its range, or the two do not fit.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept: expected a share above 0 and at most 1, got {kept}")
    others = dict(fresh.named_parameters())
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()]
    unlike = [name for name, p in trained if name not in others or others[name].shape != p.shape]
    if unlike:
        raise ValueError(f"the fresh model is of another kind: {len(unlike)} parameters do not fit, {unlike[0]} first")
    for name, parameter in trained:
        parameter.lerp_(others[name].to(parameter), 1 - kept)
