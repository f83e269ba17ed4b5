"""Stage compare: both models on the same validation rows, with the uncertainty of each and of their difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from curation.data import CuratedData
from curation.models.evaluation import logits_of, wilson
from flows.stages.common import Arguments, Output, Progress, device, open_labelled, trained_model

RESAMPLES = 10_000


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Measure ``checkpoint`` and, when there is one, ``checkpoint_after`` on the validation split.

    Returns:
        ``values``: ``before`` and ``after`` (``accuracy``, ``low``, ``high``: 95 % Wilson interval; after is None
        without a second model), ``difference`` (``value``, ``low``, ``high``: 95 % paired bootstrap) and ``n``.
    """
    data = open_labelled(arguments)
    before = correct(trained_model(arguments, data, arguments["checkpoint"]), data, arguments, progress)
    values: dict[str, Any] = {"n": len(before), "before": _share(before), "after": None, "difference": None}
    if arguments["checkpoint_after"] is not None:
        after = correct(trained_model(arguments, data, arguments["checkpoint_after"]), data, arguments, progress)
        values["after"] = _share(after)
        values["difference"] = paired_difference(before, after, seed=arguments["train"]["seed"])
    return Output(values)


def correct(model: nn.Module, data: CuratedData, arguments: Arguments, progress: Progress) -> np.ndarray:
    """Bool [n]: whether ``model`` gives each validation row its label."""
    loader = data.ordered_dataloader("validation")
    found, total, rows = [], len(data.validation_dataset), 0
    with torch.no_grad():
        for inputs, targets in loader:
            predicted = logits_of(model(inputs.to(device(arguments)))).argmax(dim=1).cpu()
            found.append((predicted == targets).numpy())
            rows += len(targets)
            progress("validation rows", rows, total)
    return np.concatenate(found)


def paired_difference(before: np.ndarray, after: np.ndarray, seed: int) -> dict[str, float]:
    """After minus before of two accuracies on the same rows, with a 95 % bootstrap interval over those rows.

    A resample of the rows is fully described by how many of them only the one or only the other model got right, so
    it is drawn as those counts.

    Args:
        before: bool [n], right before.
        after: bool [n], right after.
        seed: of the resamples.

    Returns:
        ``value``, ``low``, ``high``, fractions in [-1, 1].
    """
    n = len(before)
    gained, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    shares = [gained / n, lost / n, 1 - (gained + lost) / n]
    draws = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)  # [RESAMPLES, 3]
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    return {"value": (gained - lost) / n, "low": float(low), "high": float(high)}


def _share(right: np.ndarray) -> dict[str, float]:
    low, high = wilson(int(right.sum()), len(right))
    return {"accuracy": float(right.mean()), "low": low, "high": high}
