from __future__ import annotations

import numpy as np
import pytest
import torch

from curation.mislabel import bags, kernel, kernel_loo
from curation.mislabel.bags import TokenBags, inverse_diagonal

K = 3


def token_rows(rows: int = 40, vocabulary: int = 30, places: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, rows)
    ids = (rng.zipf(1.5, (rows, places)) + 3 * labels[:, None]) % vocabulary
    ids[rng.random(ids.shape) < 0.2] = -1
    ids[0] = -1  # a row without any token
    return ids, labels


def counted(ids: np.ndarray, vocabulary: int = 30) -> np.ndarray:
    """Dense bags by a loop: counts over their length."""
    rows = np.zeros((len(ids), vocabulary))
    for row, tokens in zip(rows, ids, strict=True):
        for token in tokens[tokens >= 0]:
            row[token] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)


def refit_without_each(features: np.ndarray, labels: np.ndarray, damping: float = 1.0) -> np.ndarray:
    rows = features - features.mean(axis=0)
    rows = np.c_[rows / np.sqrt(np.square(rows).sum(axis=1).mean()), np.ones(len(rows))]
    lam = damping * np.square(rows).sum(axis=1).mean()
    predictions = np.empty((len(rows), K))
    for i in range(len(rows)):
        rest = np.arange(len(rows)) != i
        gram = rows[rest].T @ rows[rest] + lam * np.eye(rows.shape[1])
        predictions[i] = rows[i] @ np.linalg.solve(gram, rows[rest].T @ np.eye(K)[labels[rest]])
    return predictions


@pytest.mark.parametrize("in_place", {bags.SPARSE_IN_PLACE, False})
@pytest.mark.parametrize("dense_columns", [512, 5])
def test_dot_products_of_all_rows(monkeypatch: pytest.MonkeyPatch, dense_columns: int, in_place: bool) -> None:
    monkeypatch.setattr(bags, "DENSE_COLUMNS", dense_columns)
    monkeypatch.setattr(bags, "SPARSE_IN_PLACE", in_place)
    ids, _ = token_rows()
    rows = counted(ids)
    np.testing.assert_allclose(TokenBags.from_ids(ids).gram().numpy(), rows @ rows.T, atol=1e-6)


@pytest.mark.parametrize("damping", [1.0, 0.1, 1e-4])
def test_exact_form_equals_refits(damping: float) -> None:
    ids, labels = token_rows()
    expected = refit_without_each(counted(ids), labels, damping)
    got = kernel_loo(TokenBags.from_ids(ids), labels, K, damping=damping)
    np.testing.assert_allclose(got, expected, atol=1e-5 if damping >= 0.1 else 1e-3)


def test_many_rows_lose_little_to_float32() -> None:
    ids, labels = token_rows(rows=700, vocabulary=400, places=60)
    tokens, targets = TokenBags.from_ids(ids), np.eye(K)[labels]
    rows = counted(ids, 400) - counted(ids, 400).mean(axis=0)
    gram = rows @ rows.T
    gram = gram / np.diag(gram).mean() + 1.0
    inverse = np.linalg.inv(gram + np.diag(gram).mean() * np.eye(len(rows)))
    expected = targets - inverse @ targets / np.diag(inverse)[:, None]
    np.testing.assert_allclose(kernel_loo(tokens, labels, K), expected, atol=1e-5)


def test_form_for_many_rows_equals_refits_on_the_commonest_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "EXACT_BAG_ROWS", 0)
    monkeypatch.setattr(kernel, "BLOCK_ROWS", 11)
    ids, labels = token_rows()
    rows = counted(ids)
    np.testing.assert_allclose(
        kernel_loo(TokenBags.from_ids(ids), labels, K), refit_without_each(rows, labels), atol=1e-10
    )
    monkeypatch.setattr(kernel, "BAG_COLUMNS", 8)
    commonest = np.argsort(-np.bincount(ids[ids >= 0], minlength=30), kind="stable")[:8]
    expected = refit_without_each(rows[:, commonest], labels)
    np.testing.assert_allclose(kernel_loo(TokenBags.from_ids(ids), labels, K), expected, atol=1e-10)


def test_layers_of_both_kinds_together() -> None:
    ids, labels = token_rows()
    inputs = [TokenBags.from_ids(ids), np.random.default_rng(1).normal(size=(len(ids), 4))]
    scores = kernel_loo(inputs, labels, K)
    assert scores.shape == (len(ids), K)
    assert np.isfinite(scores).all()


def test_equal_bags_tell_nothing() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    same = TokenBags.from_ids(np.tile([3, 3, 7], (6, 1)))
    features = np.random.default_rng(2).normal(size=(6, 2))
    np.testing.assert_array_equal(kernel_loo([same, features], labels, K), kernel_loo(features, labels, K))
    assert np.isfinite(kernel_loo(same, labels, K)).all()


def test_inverse_diagonal() -> None:
    rows = np.random.default_rng(3).normal(size=(20, 20))
    matrix = torch.from_numpy(rows @ rows.T + np.eye(20))
    expected = torch.linalg.inv(matrix).diagonal()
    torch.testing.assert_close(inverse_diagonal(torch.linalg.cholesky(matrix)), expected)


def test_inverse_diagonal_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags, "INVERSE_COLUMNS", 7)
    test_inverse_diagonal()
