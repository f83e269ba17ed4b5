"""How a model finds the tokens of each row: one teacher-forced pass that most measures are made of.

Axes: n rows, W_i predictions of row i (1 for a classifier).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from curation.unlearning.rows import Rows
from curation.unlearning.sequences import token_scores
from lorif_core.capture import frozen
from lorif_core.objectives import to_device


@dataclass(frozen=True)
class Scan:
    """Of each row, token by token.

    Attributes:
        log_p: log-probabilities of its tokens, float64 [W_i].
        mean: mean of the log-probability over the vocabulary there, under the model's own probabilities, float64 [W_i].
        std: its standard deviation, float64 [W_i].
        correct: whether the token is the likeliest one, bool [W_i].
    """

    log_p: Sequence[np.ndarray]
    mean: Sequence[np.ndarray]
    std: Sequence[np.ndarray]
    correct: Sequence[np.ndarray]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.log_p)

    @property
    def losses(self) -> np.ndarray:
        """Negative log-likelihood a token, float64 [n]."""
        return np.array([-values.mean() for values in self.log_p])


def scan(model: nn.Module, rows: Rows) -> Scan:
    """Read all rows once with a model, in evaluation mode."""
    found: dict[str, list[np.ndarray]] = {"log_p": [], "mean": [], "std": [], "correct": []}
    device = next(model.parameters()).device
    with frozen(model):
        for batch in rows:
            scores = token_scores(model, to_device(batch, device))
            for name, values in found.items():
                table = getattr(scores, name).numpy()
                values += [
                    row[mask].astype(np.float64 if name != "correct" else bool)
                    for row, mask in zip(table, scores.mask.numpy(), strict=True)
                ]
    return Scan(**found)
