"""Weights rounded to a few bits: knowledge that was only suppressed often comes back (arXiv 2410.16454)."""

from __future__ import annotations

import copy

import torch
from torch import nn

LEAST_DIMENSIONS = 2
"""Of a tensor that is rounded: biases and norms stay as they are."""


@torch.no_grad()
def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy of ``model`` whose matrices are rounded to ``bits``, row by row, symmetric about zero.

    Each row w becomes s round(w / s) with s = max |w| / (2^(bits - 1) - 1): what a plain weight-only quantisation keeps.

    Raises:
        ValueError: not 2 to 8 bits.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits: expected 2 to 8, got {bits}")
    levels = 2 ** (bits - 1) - 1
    found = copy.deepcopy(model)
    for parameter in found.parameters():
        if parameter.ndim >= LEAST_DIMENSIONS and parameter.is_floating_point():
            rows = parameter.flatten(1)
            scale = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) / levels
            parameter.copy_(((rows / scale).round() * scale).view_as(parameter))
    return found
