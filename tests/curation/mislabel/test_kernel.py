from __future__ import annotations

import numpy as np
import pytest
import torch

from curation.mislabel import kernel, kernel_loo

K = 4


def drawn(rows: int = 40, width: int = 6, classes: int = K, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    labels[:classes] = np.arange(classes)
    return rng.normal(size=(rows, width)) + labels[:, None], labels


def refit_without_each(features: np.ndarray, labels: np.ndarray, classes: int, damping: float) -> np.ndarray:
    """The definition: a ridge regression without row i, asked about row i."""
    rows = np.c_[features, np.ones(len(features))]
    lam = damping * np.square(rows).sum(axis=1).mean()
    predictions = np.empty((len(rows), classes))
    for i in range(len(rows)):
        rest = np.arange(len(rows)) != i
        gram = rows[rest].T @ rows[rest] + lam * np.eye(rows.shape[1])
        predictions[i] = rows[i] @ np.linalg.solve(gram, rows[rest].T @ np.eye(classes)[labels[rest]])
    return predictions


def standardised(layer: np.ndarray) -> np.ndarray:
    centred = layer - layer.mean(axis=0)
    return centred / np.sqrt(np.square(centred).sum(axis=1).mean())


def rbf(rows: np.ndarray) -> np.ndarray:
    distances = np.square(rows[:, None] - rows[None]).sum(axis=2)
    off = distances[~np.eye(len(rows), dtype=bool)]
    return np.exp(-distances / np.sort(off)[(len(off) - 1) // 2])


@pytest.mark.parametrize("damping", [0.01, 0.5])
@pytest.mark.parametrize(("rows", "width", "classes"), [(40, 6, 4), (25, 60, 3), (30, 5, 2)])
def test_linear_equals_refits(rows: int, width: int, classes: int, damping: float) -> None:
    features, labels = drawn(rows, width, classes)
    got = kernel_loo(features, labels, classes, kernel="linear", damping=damping)
    np.testing.assert_allclose(got, refit_without_each(standardised(features), labels, classes, damping), atol=1e-10)


@pytest.mark.parametrize(("rows", "width", "classes"), [(40, 6, 4), (25, 60, 3), (30, 5, 2)])
def test_rbf_with_all_rows_as_landmarks_equals_refits_of_kernel_ridge(rows: int, width: int, classes: int) -> None:
    features, labels = drawn(rows, width, classes)
    values = rbf(standardised(features)) + 1.0  # the column of ones adds 1 to every dot product
    lam = np.diag(values).mean()
    expected = np.empty((rows, classes))
    for i in range(rows):
        rest = np.arange(rows) != i
        weights = np.linalg.solve(values[np.ix_(rest, rest)] + lam * np.eye(rows - 1), np.eye(classes)[labels[rest]])
        expected[i] = values[i, rest] @ weights
    np.testing.assert_allclose(kernel_loo(features, labels, classes, landmarks=rows), expected, atol=1e-5)


def test_rbf_with_few_landmarks_equals_refits_on_its_features() -> None:
    features, labels = drawn()
    tensor = torch.from_numpy(standardised(features))
    mapped = kernel._rbf_features(lambda rows: tensor[rows], len(labels), 12, seed=3)(slice(0, len(labels))).numpy()
    assert mapped.shape == (len(labels), 12)
    got = kernel_loo(features, labels, K, landmarks=12, seed=3)
    np.testing.assert_allclose(got, refit_without_each(mapped, labels, K, 1.0), atol=1e-10)


def test_layers_are_weighted_by_the_inverse_of_how_sure_they_are() -> None:
    features, labels = drawn()
    layers = [features[:, :2] * 1e4 + 7, np.ones((len(labels), 3)), features[:, 2:] * 1e-3]
    alone = [kernel_loo(layer, labels, K) for layer in (layers[0], layers[2])]
    shares = np.array([1 / np.abs(kernel.gap(scores, labels)).mean() for scores in alone])
    expected = np.tensordot(shares / shares.sum(), np.stack(alone), axes=1)
    np.testing.assert_allclose(kernel_loo(layers, labels, K), expected, atol=1e-12)


@pytest.mark.parametrize("name", kernel.KERNELS)
def test_own_label_is_not_known(name: str) -> None:
    features, labels = drawn()
    changed = labels.copy()
    changed[5] = (labels[5] + 1) % K
    before = kernel_loo(features, labels, K, kernel=name)
    after = kernel_loo(features, changed, K, kernel=name)
    np.testing.assert_allclose(before[5], after[5], atol=1e-10)
    assert np.abs(before - after).max() > 1e-3


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = drawn()
    whole = kernel_loo(features, labels, K)
    monkeypatch.setattr(kernel, "BLOCK_ROWS", 7)
    np.testing.assert_allclose(kernel_loo(features, labels, K), whole, atol=1e-12)


@pytest.mark.parametrize("name", kernel.KERNELS)
def test_renaming_classes_and_reordering_rows_moves_the_result_with_them(name: str) -> None:
    features, labels = drawn()
    whole = {"kernel": name, "landmarks": len(labels)}
    scores = kernel_loo(features, labels, K, **whole)
    renamed = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(kernel_loo(features, renamed[labels], K, **whole)[:, renamed], scores, atol=1e-10)
    order = np.random.default_rng(1).permutation(len(labels))
    np.testing.assert_allclose(kernel_loo(features[order], labels[order], K, **whole), scores[order], atol=1e-7)


@pytest.mark.parametrize("name", kernel.KERNELS)
def test_constant_features_leave_the_frequencies_of_the_others(name: str) -> None:
    labels = np.array([0, 0, 0, 1])
    scores = kernel_loo(np.full((4, 3), 1e6, dtype=np.float32), labels, 2, kernel=name, damping=1e-6)
    np.testing.assert_allclose(scores, [[2 / 3, 1 / 3]] * 3 + [[1, 0]], atol=1e-5)


def test_class_with_one_member_and_class_with_none() -> None:
    features, labels = drawn(classes=2)
    labels[7] = 2
    scores = kernel_loo(features, labels, 4)
    assert np.isfinite(scores).all()
    assert abs(scores[7, 2]) < 1e-8  # without its only member nothing speaks for the class
    np.testing.assert_array_equal(scores[:, 3], 0)


def test_a_row_of_leverage_one_predicts_about_nothing() -> None:
    features = np.zeros((50, 2), dtype=np.float64)
    features[0, 0] = 1.0
    features[1:, 1] = np.linspace(-1, 1, 49)
    labels = np.r_[0, np.ones(49, dtype=np.int64)]
    scores = kernel_loo(features, labels, 2, kernel="linear", damping=1e-13)
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() < 3


def test_repeated_rows_vote_for_each_other() -> None:
    features = np.repeat(np.eye(3), 10, axis=0)
    labels = np.repeat(np.arange(3), 10)
    labels[0] = 2
    scores = kernel_loo(features, labels, 3)
    assert scores[0].argmax() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "cubic"}, "rbf, linear"),
        ({"damping": 0.0}, "damping"),
        ({"damping": np.nan}, "damping"),
        ({"landmarks": 0}, "landmarks"),
        ({"num_classes": 1}, "2 classes"),
        ({"num_classes": 3}, "codes from 0 to 2"),
        ({"labels": np.zeros(3, dtype=np.int64)}, "expected shape"),
        ({"labels": np.zeros(40)}, "integer"),
        ({"inputs": np.full((40, 2), np.nan)}, "40 rows .index 0, 1, 2, 3, 4, ...."),
        ({"inputs": []}, "needs the inputs"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    features, labels = drawn()
    with pytest.raises(ValueError, match=message):
        kernel_loo(**{"inputs": features, "labels": labels, "num_classes": K} | change)
