from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from curation.mislabel import loo_logits

DAMPING = 0.1


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def case(rows: int = 30, width: int = 5, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, width)), 2 * rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)


@pytest.mark.parametrize(("rows", "width", "classes"), [(30, 5, 3), (20, 40, 4), (25, 3, 2)])
def test_equals_newton_steps_with_the_row_taken_out_of_the_curvature(rows: int, width: int, classes: int) -> None:
    features, logits, labels = case(rows, width, classes)
    inputs = np.c_[features, np.ones(rows)]
    p = softmax(logits)
    weights = (p * (1 - p)).mean(axis=1)
    lam = DAMPING * np.square(inputs).sum(axis=1).mean()
    expected = np.empty_like(logits)
    for i in range(rows):
        rest = np.arange(rows) != i
        curvature = inputs[rest].T @ (weights[rest, None] * inputs[rest]) + lam * np.eye(inputs.shape[1])
        gradient = np.outer(inputs[i], p[i] - np.eye(classes)[labels[i]])  # what the row's loss pulled at the weights
        expected[i] = logits[i] + inputs[i] @ np.linalg.solve(curvature, gradient)
    np.testing.assert_allclose(loo_logits(features, logits, labels, damping=DAMPING), expected, atol=1e-10)


def test_close_to_training_the_last_layer_without_the_row() -> None:
    features, _, labels = case(60, 3, 2)
    inputs = torch.from_numpy(np.c_[features, np.ones(60)])
    targets = torch.from_numpy(labels)
    lam = DAMPING * float(inputs.square().sum(dim=1).mean())

    def trained(rows: list[int]) -> torch.Tensor:
        weights = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            solver.zero_grad()
            fit = functional.cross_entropy(inputs[rows] @ weights, targets[rows], reduction="sum")
            value = fit + 0.5 * lam * weights.square().sum()
            value.backward()
            return value

        solver.step(loss)
        return weights.detach()

    everything = list(range(60))
    logits = (inputs @ trained(everything)).numpy()
    refits = [inputs[i] @ trained([row for row in everything if row != i]) for i in range(60)]
    moved = torch.stack(refits).numpy() - logits
    step = loo_logits(features, logits, labels, damping=DAMPING) - logits
    assert np.corrcoef(moved.ravel(), step.ravel())[0, 1] > 0.98


def test_a_sure_and_right_row_stays_and_a_wrong_one_moves_away_from_its_label() -> None:
    features, _, _ = case()
    logits = np.tile([[9.0, 0.0, 0.0]], (30, 1))
    labels = np.zeros(30, dtype=np.int64)
    labels[4] = 1
    moved = loo_logits(features, logits, labels) - logits
    assert np.abs(np.delete(moved, 4, axis=0)).max() < 0.05
    assert moved[4, 1] < -0.1


def test_saturated_probabilities_stay_finite() -> None:
    features, _, labels = case()
    assert np.isfinite(loo_logits(features, 1e4 * np.eye(3)[labels], labels)).all()


def test_bad_arguments() -> None:
    features, logits, labels = case()
    with pytest.raises(ValueError, match="damping"):
        loo_logits(features, logits, labels, damping=-1.0)
    with pytest.raises(ValueError, match="features: expected shape"):
        loo_logits(features[:-1], logits, labels)
    logits[3] = np.nan
    with pytest.raises(ValueError, match="logits.*index 3"):
        loo_logits(features, logits, labels)
