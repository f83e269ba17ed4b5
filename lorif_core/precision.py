"""The precision of the forward and backward pass; gradients are contracted, stored and compared apart from it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lorif_core.capture import Loss
from lorif_core.objectives import Batch

Precision = Literal["32", "bf16"]


def in_precision(loss: Loss, precision: Precision, device: torch.device) -> Loss:
    """The loss as it is, or (`bf16`) under autocast to bfloat16, its weights left as they are.

    Raises:
        ValueError: the device has no bfloat16.
    """
    if precision == "32":
        return loss
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(f"precision: {torch.cuda.get_device_name(device)} has no bfloat16; use precision='32'")

    def under_autocast(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return loss(model, batch)

    return under_autocast
