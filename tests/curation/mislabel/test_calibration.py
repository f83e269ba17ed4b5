from __future__ import annotations

import numpy as np
import pytest

from curation.mislabel import calibration, loo_probabilities


def drawn(rows: int = 4000, classes: int = 3, slope: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels drawn with the probabilities softmax(slope * score + offset), and those probabilities."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(rows, classes))
    powers = np.exp(slope * scores + np.arange(classes) / classes)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return scores, labels, probabilities


def test_recovers_the_probabilities_the_labels_were_drawn_with() -> None:
    scores, labels, truth = drawn()
    found = loo_probabilities(0.01 * scores + 5.0, labels)  # neither scale nor level of the scores matters
    assert np.abs(found - truth).mean() < 0.02


@pytest.mark.parametrize(("rows", "classes"), [(4000, 3), (50, 2), (12, 6)])
def test_rows_sum_to_one_and_means_are_the_frequencies(rows: int, classes: int) -> None:
    scores, labels, _ = drawn(rows, classes)
    found = loo_probabilities(scores, labels)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(found.mean(axis=0), np.bincount(labels, minlength=classes) / rows, atol=2e-3)


def test_newton_reached_the_maximum() -> None:
    scores, labels, _ = drawn(200)
    centred = scores - scores.mean(axis=1, keepdims=True)
    found = np.log(loo_probabilities(scores, labels))
    found -= found.mean(axis=1, keepdims=True)
    design = np.c_[np.tile(np.eye(3) - 1 / 3, (200, 1)), centred.reshape(-1)]
    state = np.linalg.lstsq(design, found.reshape(-1), rcond=None)[0]
    state[-1] *= centred.std()
    gradient, _ = calibration._derivatives(centred / centred.std(), labels, state)
    assert np.abs(gradient).max() < 1e-6


def test_renaming_classes_moves_the_probabilities_with_them() -> None:
    scores, labels, _ = drawn(300)
    renamed = np.array([2, 0, 1])
    shuffled = np.empty_like(scores)
    shuffled[:, renamed] = scores
    found = loo_probabilities(shuffled, renamed[labels])[:, renamed]
    np.testing.assert_allclose(found, loo_probabilities(scores, labels), atol=1e-9)


def test_scores_worse_than_chance_or_constant_leave_the_frequencies() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2] * 20)
    frequencies = np.array([0.5, 1 / 3, 1 / 6])
    for scores in (-np.eye(3)[labels], np.full((120, 3), 7.0)):
        np.testing.assert_allclose(loo_probabilities(scores, labels), np.tile(frequencies, (120, 1)), atol=1e-4)


def test_separable_scores_and_a_class_without_rows_stay_finite() -> None:
    labels = np.array([0, 1] * 30)
    found = loo_probabilities(np.eye(3)[labels], labels)
    assert np.isfinite(found).all()
    assert found[np.arange(60), labels].min() > 0.99
    assert found[:, 2].max() < 0.01


def test_bad_arguments() -> None:
    scores, labels, _ = drawn(10)
    with pytest.raises(ValueError, match="expected shape"):
        loo_probabilities(scores, labels[:-1])
    scores[2, 1] = np.inf
    with pytest.raises(ValueError, match="scores.*index 2"):
        loo_probabilities(scores, labels)
