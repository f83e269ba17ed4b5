"""Learning some of the records again: a model that only hid the others brings them back with them.

The records are split in two. The model learns one half for a few steps, and is asked for the other: one that never saw any of
them learns little about it from strangers (a held-out-facts attack).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from curation.unlearning.rows import Rows
from curation.unlearning.sequences import predict
from lorif_core.objectives import to_device


def relearned(model: nn.Module, rows: Rows, *, steps: int, lr: float, seed: int = 0) -> nn.Module:
    """A copy of ``model`` after ``steps`` of AdamW on random batches of ``rows``; in evaluation mode.

    It learns as it has learned: by what requires a gradient, such as adapters; by every weight where nothing does.
    """
    found = copy.deepcopy(model).eval()
    weights = [p for p in found.parameters() if p.is_floating_point()]
    trained = [p for p in weights if p.requires_grad] or weights
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    draw = np.random.default_rng(seed)
    device = trained[0].device
    for _ in range(steps):
        which = draw.choice(len(rows), size=min(rows.size, len(rows)), replace=False)
        optimizer.zero_grad()
        torch.autograd.backward(predict(found, to_device(rows.batch(which.tolist()), device)).mean().mean())
        optimizer.step()
    optimizer.zero_grad()
    return found


def halves(rows: Rows, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The numbers 0 to n - 1 of ``rows``, in two random halves."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])


def part(rows: Rows, which: np.ndarray) -> Rows:
    """Some of the rows, by their numbers."""
    return replace(rows, positions=rows.positions[which])


def losses_after_relearning(model: nn.Module, rows: Rows, *, steps: int, lr: float, seed: int = 0) -> np.ndarray:
    """Loss of each record [n] once the other half of them has been learned again."""
    found = np.empty(len(rows))
    first, second = halves(rows, seed)
    for learned, asked in ((first, second), (second, first)):
        again = relearned(model, part(rows, learned), steps=steps, lr=lr, seed=seed)
        with torch.no_grad():
            device = next(again.parameters()).device
            parts = [predict(again, to_device(batch, device)).mean().cpu() for batch in part(rows, asked)]
        found[asked] = torch.cat(parts).double().numpy()
    return found
