"""A Newton step of a classifier's head against the head fitted anew without the records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset, default_collate

from curation.errors import CurationError, ModelError
from curation.models import TabularClassifier, TinyGPT
from curation.options import made_of
from curation.unlearning.newton_head import NEWTON, NewtonOptions, check_head, unlearn_head
from curation.unlearning.rows import Rows
from tests.curation.unlearning.test_newton import L2, fitted

ROWS, GONE = 500, 12


def rows_of(x: Tensor, y: Tensor, positions: np.ndarray) -> Rows:
    return Rows(TensorDataset(x, y), positions, default_collate, 64)


@pytest.fixture(scope="module")
def problem() -> tuple[TabularClassifier, Tensor, Tensor]:
    """A classifier whose head is at its optimum, and its rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 4, generator=generator)
    y = (x @ torch.randn(4, 3, generator=generator) + torch.randn(ROWS, 3, generator=generator)).argmax(1)
    torch.manual_seed(0)
    model = TabularClassifier((4,), 3, hidden=(6,)).eval()
    head = fitted(inputs(model, x), y)
    with torch.no_grad():
        model.head.weight.copy_(head[:, :-1])
        model.head.bias.copy_(head[:, -1])
    return model, x, y


def inputs(model: TabularClassifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return functional.pad(model.features(x), (0, 1), value=1.0).double()


def test_the_head_is_nearer_to_one_fitted_anew_than_influence_and_the_rest_is_untouched(
    problem: tuple[TabularClassifier, Tensor, Tensor],
) -> None:
    model, x, y = problem
    positions = np.arange(ROWS)
    features, before = inputs(model, x), {name: value.clone() for name, value in model.state_dict().items()}
    old = torch.cat([model.head.weight, model.head.bias[:, None]], 1).detach().double()
    found = unlearn_head(model, rows_of(x, y, positions[:GONE]), rows_of(x, y, positions[GONE:]), NewtonOptions(l2=L2))
    anew = fitted(features[GONE:], y[GONE:])

    def loss(flat: Tensor) -> Tensor:
        w = flat.view_as(old)
        return functional.cross_entropy(features @ w.T, y, reduction="sum") + L2 / 2 * w.square().sum()

    gone = (features[:GONE] @ old.T).softmax(1) - functional.one_hot(y[:GONE], 3)
    hessian = torch.autograd.functional.hessian(loss, old.flatten())
    influence = old + torch.linalg.solve(hessian, (gone.T @ features[:GONE]).flatten()).view_as(old)
    new = torch.cat([model.head.weight, model.head.bias[:, None]], 1).detach().double()
    error, other = float((new - anew).norm()), float((influence - anew).norm())
    assert error < other and error < 0.1 * float((anew - old).norm())
    assert found.step.left == pytest.approx(error, rel=0.1) and not found.step.warnings()
    assert found.step.head == "head" and found.step.parameters == 21
    assert set(found.changes.norms) == {"head.weight", "head.bias"}
    assert found.curve[1]["forget_loss"] > found.curve[0]["forget_loss"]
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("head"))


def test_a_step_too_long_for_a_quadratic_is_told(problem: tuple[TabularClassifier, Tensor, Tensor]) -> None:
    _, x, y = problem
    model = TabularClassifier((4,), 3, hidden=()).eval()
    with torch.no_grad():
        model.head.weight.mul_(100)  # sure of every row, and often wrong
    positions = np.arange(ROWS)
    found = unlearn_head(
        model, rows_of(x, y, positions[:GONE]), rows_of(x, y, positions[GONE:]), NewtonOptions(l2=1e-6)
    )
    assert "raise unlearn.options.l2" in found.step.warnings()[0]


def test_what_has_no_small_linear_head_is_refused(problem: tuple[TabularClassifier, Tensor, Tensor]) -> None:
    _, x, y = problem
    tokens = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ModelError, match="newton is for classifiers"):
        check_head(TinyGPT(8, 4, width=8, heads=1), {"input_ids": tokens, "attention_mask": tokens, "labels": tokens})
    with pytest.raises(
        ModelError, match=r"3 x 3,001 = 9,003 parameters and its Hessian 0.6 GiB; expected at most 8,192"
    ):
        check_head(TabularClassifier((4,), 3, hidden=(3000,)), (x, y))
    with pytest.raises(CurationError, match="unknown options ridge; it takes l2, steps"):
        made_of(NEWTON, NewtonOptions, {"ridge": 1})
    with pytest.raises(CurationError, match="l2: expected a number above 0, got 0"):
        made_of(NEWTON, NewtonOptions, {"l2": 0})
