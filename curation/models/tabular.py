"""Rows of numbers: a perceptron on standardised features.

Axes: B rows, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from curation.models.base import Classifier, dense, width_problems


class TabularClassifier(Classifier):
    """Classifies rows of numeric features.

    The features are standardised inside the model, by means and deviations it learns from the training split when it
    is first trained with a data module; they are buffers, so that a checkpoint carries them, and a model trained
    further keeps them. Trained without a data module, call :meth:`fit_scale` first, or the features stay as they are.

    Args:
        input_shape: (F,); more axes are flattened.
        num_classes: K.
        hidden: widths of the layers before the head; the last one is the width of the features label errors are found in.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        schedule: ``"constant"`` or ``"cosine"``.

    Raises:
        ModelError: an argument is out of its range.
    """

    mean: Tensor
    deviation: Tensor
    fitted: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (128, 64),
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
        schedule: str = "constant",
    ) -> None:
        input_shape, hidden, num_classes = [int(n) for n in input_shape], [int(n) for n in hidden], int(num_classes)
        problems = width_problems(hidden)
        if not input_shape or min(input_shape) < 1:
            problems.append(f"input_shape must be (features,), got {tuple(input_shape)}")
        super().__init__(num_classes, lr, weight_decay, schedule, problems)
        self.save_hyperparameters(ignore=["problems"])

        width = prod(input_shape)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("fitted", torch.tensor(False))
        self.features = dense(width, hidden)
        self.head = nn.Linear(hidden[-1] if hidden else width, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits [B, K] of ``rows`` [B, F] float32."""
        standardised = (rows.flatten(start_dim=1) - self.mean) / self.deviation
        logits: Tensor = self.head(self.features(standardised))
        return logits

    def setup(self, stage: str) -> None:
        """Learn the scale of the features from the training split, once."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and data is not None and not self.fitted:
            self.fit_scale(data.train_dataloader())

    def fit_scale(self, loader: Iterable[Sequence[Tensor]]) -> None:
        """Set mean and deviation from one pass over ``loader`` of ``(rows [B, F], codes)``; a constant feature keeps 1."""
        rows, shift = 0, None
        total = square = torch.zeros(len(self.mean), dtype=torch.float64)
        for inputs, _ in loader:
            batch = inputs.flatten(start_dim=1).double()
            # Sums of differences from one row near the data: features far from zero would lose their variance otherwise.
            shift = batch[0] if shift is None else shift
            rows += len(batch)
            total = total + (batch - shift).sum(dim=0)
            square = square + (batch - shift).square().sum(dim=0)
        if shift is None:
            raise ValueError("fit_scale: the loader has no rows to learn means and deviations from")
        deviation = (square / rows - (total / rows).square()).clamp(min=0).sqrt()
        self.mean.copy_(shift + total / rows)
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))
        self.fitted.fill_(True)
