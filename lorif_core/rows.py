"""Rows of an index, as they are made of a window of examples: losses, stored gradients, squared norms.

Axes: W rows of a window, d1 / d2 projected sides, c factor rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorif_core.blocks import Stored
from lorif_core.bucketing import Window
from lorif_core.capture import Loss
from lorif_core.contraction import energy
from lorif_core.factors import factorise
from lorif_core.gradients import BatchGradients


@dataclass(frozen=True)
class IndexRows:
    """Rows in the loader's order."""

    losses: Tensor
    """[W]."""
    gradients: dict[str, Stored]
    """Of each layer, as it is stored: factors [W, d1, c] and [W, d2, c], or the gradients [W, d1, d2]."""
    energies: dict[str, Tensor]
    """Squared norms [W] of each layer's gradients before factoring."""

    def select(self, rows: list[int]) -> IndexRows:
        """Some of the rows."""
        return IndexRows(
            self.losses[rows],
            {
                name: x[rows] if isinstance(x, Tensor) else (x[0][rows], x[1][rows])
                for name, x in self.gradients.items()
            },
            {name: x[rows] for name, x in self.energies.items()},
        )

    def not_finite(self) -> tuple[list[int], list[str]]:
        """Rows with a loss or gradient that is not finite, and the layers where."""
        sums = {
            name: x.sum((1, 2)) if isinstance(x, Tensor) else x[0].sum((1, 2)) + x[1].sum((1, 2))
            for name, x in self.gradients.items()
        }
        finite = torch.isfinite(torch.stack([self.losses.float(), *sums.values()])).all(0)  # [W]
        if bool(finite.all()):
            return [], []
        rows: list[int] = (~finite).nonzero().flatten().tolist()
        return rows, [name for name, value in sums.items() if not bool(torch.isfinite(value).all())]


def made_of(window: Window, gradients: BatchGradients, loss: Loss, ranks: dict[str, int], seed: int) -> IndexRows:
    """Run a window's pieces through the model.

    Args:
        window: of examples.
        gradients: runs one batch.
        loss: per example [B].
        ranks: c of each layer (`factorise`).
        seed: of the factors' start.
    """
    losses, parts, energies = [], [], []
    for piece in window.pieces:
        lost, found = gradients(loss, piece)
        losses.append(lost)
        parts.append(factorise(found, ranks, seed))
        energies.append({name: energy(gradient) for name, gradient in found.items()})
    return IndexRows(
        window.in_order(losses),
        {name: _joined([part[name] for part in parts], window) for name in ranks},
        {name: window.in_order([part[name] for part in energies]) for name in ranks},
    )


def _joined(parts: list[Stored], window: Window) -> Stored:
    """What is stored of one layer, from the pieces of a window."""
    if isinstance(parts[0], Tensor):
        return window.in_order([part for part in parts if isinstance(part, Tensor)])
    return window.in_order([part[0] for part in parts]), window.in_order([part[1] for part in parts])
