"""The loss of ONE example, summed over its tokens, written out term by term.

An example is what a loader of batch size 1 yields: ``(inputs [1, ...], target [1, ...])``, a dict of ``[1, ...]``
tensors, or a LongTensor of ids [1, T].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100


def logits_of(outputs: Any) -> Tensor:
    """The tensor a model returns, or its ``.logits``."""
    return outputs.logits if hasattr(outputs, "logits") else outputs


def forward_example(model: nn.Module, example: Any) -> tuple[Tensor, Tensor | None]:
    """Model outputs and the example's target; a dict goes in by keyword, without its labels."""
    if isinstance(example, dict):
        inputs = {key: value for key, value in example.items() if key != "labels"}
        return logits_of(model(**inputs)), example.get("labels")
    if isinstance(example, Tensor):
        return logits_of(model(example)), None
    inputs, target = example
    return logits_of(model(inputs)), target


def classification_loss(model: nn.Module, example: Any) -> Tensor:
    """-log p(true label), a scalar: logsumexp(z) - z_y over the classes."""
    logits, target = forward_example(model, example)  # [1, K], [1]
    z = logits[0]  # [K]
    return torch.logsumexp(z, dim=0) - z[int(target[0])]


def causal_lm_loss(model: nn.Module, example: Any) -> Tensor:
    """Sum over positions t >= 1 of -log p(label_t | tokens before t); no label, no term.

    Labels lie on the positions of the ids (shifted here, not by the caller) and default to the ids; -100 and positions
    whose attention_mask is 0 are not predicted, and the latter predict nothing.
    """
    logits, labels = forward_example(model, example)  # [1, T, vocab], [1, T] | None
    ids = example["input_ids"] if isinstance(example, dict) else example  # [1, T]
    labels = ids if labels is None else labels
    mask = example.get("attention_mask") if isinstance(example, dict) else None
    total = logits.sum() * 0.0  # keeps a graph when every label is ignored
    for t in range(1, labels.shape[1]):
        label = int(labels[0, t])
        if label == IGNORED or (mask is not None and 0 in (int(mask[0, t]), int(mask[0, t - 1]))):
            continue
        z = logits[0, t - 1]  # [vocab]: the logits at t - 1 predict the token at t
        total = total + torch.logsumexp(z, dim=0) - z[label]
    return total


def half_squared_error(model: nn.Module, example: Any) -> Tensor:
    """Half the sum over the outputs of (output - target)^2."""
    outputs, target = forward_example(model, example)  # [1, ...], [1, ...]
    return 0.5 * (outputs.flatten() - target.flatten()).square().sum()


LOSSES = {"classification": classification_loss, "causal_lm": causal_lm_loss, "regression": half_squared_error}
