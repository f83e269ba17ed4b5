from __future__ import annotations

import numpy as np
import pytest

from curation.mislabel import confident_joint, estimate_errors, kernel_loo, loo_probabilities


def clusters(rows: int, classes: int, rate: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clouds of points, their given labels with round(rate * rows) wrong ones among them, and the right ones."""
    rng = np.random.default_rng(seed)
    right = np.arange(rows) % classes
    points = 4.0 * np.eye(classes)[right] + rng.normal(size=(rows, classes))
    given = right.copy()
    wrong = rng.permutation(rows)[: round(rate * rows)]
    given[wrong] = (right[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return points, given, right


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2])
def test_estimates_the_number_of_planted_errors(classes: int, rate: float) -> None:
    points, given, right = clusters(1500, classes, rate)
    probabilities = loo_probabilities(kernel_loo(points, given, classes), given)
    planted = int((given != right).sum())
    assert abs(estimate_errors(probabilities, given) - planted) <= 0.15 * planted + 15


def test_joint_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.8, 0.2], [0.25, 0.75], [0.85, 0.15], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1, 1, 0])
    # Thresholds: class 0 (0.9 + 0.7 + 0.8 + 0.4) / 4 = 0.7, class 1 (0.75 + 0.15) / 2 = 0.45.
    np.testing.assert_array_equal(confident_joint(probabilities, labels), [[3, 1], [1, 1]])
    assert estimate_errors(probabilities, labels) == 2  # 4 * 1 / 4 + 2 * 1 / 2


def test_rows_that_reach_no_threshold_err_as_often_as_the_others() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.95, 0.05], [0.1, 0.9], [0.59, 0.41], [0.55, 0.45]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    # Thresholds: class 0 (0.9 + 0.7 + 0.2) / 3 = 0.6, class 1 (0.05 + 0.9 + 0.41 + 0.45) / 4 = 0.4525: the last two reach none.
    np.testing.assert_array_equal(confident_joint(probabilities, labels), [[2, 1], [1, 1]])
    assert estimate_errors(probabilities, labels) == 3  # 3 * 1 / 3 + 4 * 1 / 2


def test_equal_probabilities_and_a_class_without_rows_hold_no_errors() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    probabilities = np.tile([0.4, 0.6 - 1e-16, 0.0], (5, 1))
    joint = confident_joint(probabilities, labels)
    assert joint.sum() == 5
    assert joint[:, 2].sum() == 0


def test_renaming_classes_changes_no_count() -> None:
    points, given, _ = clusters(300, 3, 0.1)
    probabilities = loo_probabilities(kernel_loo(points, given, 3), given)
    renamed = np.array([1, 2, 0])
    shuffled = np.empty_like(probabilities)
    shuffled[:, renamed] = probabilities
    assert estimate_errors(shuffled, renamed[given]) == estimate_errors(probabilities, given)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="expected shape"):
        estimate_errors(np.full((4, 2), 0.5), np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="probabilities"):
        estimate_errors(np.array([[0.5, np.nan]]), np.array([0]))
