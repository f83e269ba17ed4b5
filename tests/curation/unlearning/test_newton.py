"""The Newton step against heads fitted anew, and its known error bands."""

from __future__ import annotations

import pytest
import torch

from curation.errors import TrainingError
from curation.unlearning.newton import newton_removal, predicted_error

L2 = 1.0


def problem(rows: int, width: int, classes: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([torch.randn(rows, width, generator=generator), torch.ones(rows, 1)], 1).double()
    truth = torch.randn(width + 1, classes, generator=generator).double()
    y = torch.multinomial((x @ truth).softmax(1), 1, generator=generator).flatten()
    return x, y


def fitted(x, y, classes: int = 3):
    """The optimum, by an optimizer that knows nothing of Newton steps."""
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T, y, reduction="sum") + L2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


@pytest.mark.parametrize("gone", [1, 16])
def test_the_step_is_near_a_head_fitted_anew_and_nearer_than_influence(gone):
    x, y = problem(1000, 6)
    weight, keep = fitted(x, y), torch.arange(1000) >= gone
    anew = fitted(x[keep], y[keep])
    found = newton_removal(x, y, weight, keep, L2)

    def loss(flat):
        w = flat.view_as(weight)
        return torch.nn.functional.cross_entropy(x @ w.T, y, reduction="sum") + L2 / 2 * w.square().sum()

    hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    p = (x[~keep] @ weight.T).softmax(1) - torch.nn.functional.one_hot(y[~keep], 3)
    influence = weight + torch.linalg.solve(hessian, (p.T @ x[~keep]).flatten()).view_as(weight)
    newton_error, influence_error = float((found.weight - anew).norm()), float((influence - anew).norm())
    assert newton_error < 0.02 * float((anew - weight).norm())
    assert newton_error < influence_error / 1.5
    assert found.step == pytest.approx(float((anew - weight).norm()), rel=0.05)


def test_the_step_equals_autograd_newton_on_the_loss_of_the_rows_that_stay_with_the_gradient_there_was_held():
    x, y = problem(40, 3)
    weight, keep = 0.1 * torch.ones(3, 4, dtype=torch.float64), torch.arange(40) % 5 > 0
    start = weight.flatten().requires_grad_()

    def loss(flat, rows):
        w = flat.view_as(weight)
        data = torch.nn.functional.cross_entropy(x[rows] @ w.T, y[rows], reduction="sum")
        return data + L2 / 2 * (flat - start.detach()).square().sum()

    every = torch.ones_like(keep)
    held = torch.autograd.grad(loss(start, every), start)[0]
    gradient = torch.autograd.grad(loss(start, keep), start)[0] - held
    wanted = start - torch.linalg.solve(torch.autograd.functional.hessian(lambda w: loss(w, keep), start), gradient)
    found = newton_removal(x, y, weight, keep, L2)
    torch.testing.assert_close(found.weight.flatten(), wanted.detach(), rtol=1e-10, atol=1e-12)
    assert newton_removal(x, y, weight, every, L2).step < 1e-12, "nothing goes, nothing changes"


def test_the_error_is_as_the_next_step_says_and_on_average_within_the_band():
    errors, bounds = [], []
    for seed in range(6):
        x, y = problem(400, 5, seed=seed)
        weight, keep = fitted(x, y), torch.arange(400) >= 8
        found = newton_removal(x, y, weight, keep, L2)
        errors.append(float((found.weight - fitted(x[keep], y[keep])).norm()))
        assert found.left == pytest.approx(errors[-1], rel=0.05)
        bounds.append(predicted_error(x, 3, 8))
    low, high = (sum(each) / 6 for each in zip(*bounds, strict=True))
    assert low < sum(errors) / 6 < high


def test_more_steps_reach_the_optimum():
    x, y = problem(200, 5)
    keep = torch.arange(200) >= 40
    found = newton_removal(x, y, fitted(x, y), keep, L2, steps=6)
    torch.testing.assert_close(found.weight, fitted(x[keep], y[keep]), rtol=1e-6, atol=1e-8)
    assert found.gradient < 1e-9


def test_wrong_arguments_are_told_together():
    x, y = problem(4, 2)
    with pytest.raises(TrainingError, match="l2 must be positive, got 0; no row is kept"):
        newton_removal(x, y, torch.zeros(3, 3), torch.zeros(4, dtype=torch.bool), 0)
