from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from curation.data import Digits
from curation.data.noise import KINDS, PROBE_COLUMNS, noise_problems, plant_noise


def blobs(rows: int, classes: int, columns: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows] and inputs [rows, columns] around one centre a class."""
    rng = np.random.default_rng(1)
    codes = np.arange(rows) % classes
    return codes, rng.normal(size=(classes, columns))[codes] * 3 + rng.normal(size=(rows, columns))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 60),
    classes=st.integers(2, 7),
)
def test_exactly_the_share_changes_and_only_to_other_classes(
    kind: str, rate: float, seed: int, rows: int, classes: int
) -> None:
    codes, inputs = blobs(rows, classes)
    before = codes.copy()
    noisy = plant_noise(codes, classes, kind, rate, seed, inputs)
    assert (codes == before).all()
    assert (noisy != codes).sum() == round(rate * rows)
    assert noisy.dtype == np.int64 and noisy.min() >= 0 and noisy.max() < classes
    assert (noisy == plant_noise(codes, classes, kind, rate, seed, inputs)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_changes_other_rows(kind: str) -> None:
    codes, inputs = blobs(400, 4)
    first, second = (plant_noise(codes, 4, kind, 0.2, seed, inputs) for seed in (0, 1))
    assert (first != second).any()


def test_pairwise_goes_to_the_next_class() -> None:
    codes, _ = blobs(300, 5)
    noisy = plant_noise(codes, 5, "pairwise", 0.3, 0)
    changed = noisy != codes
    assert (noisy[changed] == (codes[changed] + 1) % 5).all()


def test_uniform_reaches_every_other_class() -> None:
    codes, _ = blobs(4000, 4)
    noisy = plant_noise(codes, 4, "uniform", 0.5, 0)
    steps = np.bincount((noisy - codes)[noisy != codes] % 4, minlength=4)
    assert steps[0] == 0 and (np.abs(steps[1:] - 2000 / 3) < 100).all()


def test_feature_noise_takes_the_rows_between_two_classes() -> None:
    position = np.concatenate([np.linspace(-2, -0.1, 100), np.linspace(0.1, 2, 100)])
    codes = (position > 0).astype(np.int64)
    noisy = plant_noise(codes, 2, "feature", 0.1, 3, position[:, None])
    assert np.abs(position[noisy != codes]).max() < 0.6


def test_feature_noise_goes_to_the_class_beside() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [30.0, 30.0]])
    codes = np.arange(300) % 3
    noisy = plant_noise(codes, 3, "feature", 0.1, 0, centres[codes] + rng.normal(size=(300, 2)))
    assert (noisy[codes == 2] == 2).all() and not (noisy[codes < 2] == 2).any()


def test_wide_and_constant_inputs() -> None:
    codes, _ = blobs(50, 2)
    inputs = np.ones((50, PROBE_COLUMNS + 100))
    assert (plant_noise(codes, 2, "feature", 0.2, 0, inputs) != codes).sum() == 10


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ({"kind": "gauss", "rate": 0.1}, "noise.kind must be one of uniform, pairwise, feature; got 'gauss'"),
        ({"rate": 0.1}, "noise.kind"),
        ({"kind": "uniform"}, "noise.rate"),
        ({"kind": "uniform", "rate": 1.0}, "noise.rate"),
        ({"kind": "uniform", "rate": -0.1}, "noise.rate"),
        ({"kind": "uniform", "rate": "a lot"}, "noise.rate"),
        ({"kind": "uniform", "rate": 0.1, "seed": 0.5}, "noise.seed"),
        ({"kind": "uniform", "rate": 0.1, "share": 1}, "unknown key 'share'"),
        ("uniform", "expected kind, rate and seed"),
    ],
)
def test_wrong_options(noise: object, words: str) -> None:
    (problem,) = noise_problems(noise)  # type: ignore[arg-type]
    assert words in problem


def test_right_options() -> None:
    assert noise_problems(None) == noise_problems({"kind": "uniform", "rate": 0}) == []
    assert len(noise_problems({"kind": "x", "rate": 2, "seed": -1})) == 3


def test_what_cannot_be_planted_is_refused() -> None:
    codes, _ = blobs(10, 2)
    with pytest.raises(ValueError, match="needs the inputs"):
        plant_noise(codes, 2, "feature", 0.1)
    with pytest.raises(ValueError, match="at least 2 classes"):
        plant_noise(codes * 0, 1, "uniform", 0.1)


def test_feature_noise_of_the_digits_meets_its_rate_in_training_only() -> None:
    data = Digits(noise={"kind": "feature", "rate": 0.1, "seed": 1})
    train, validation = (data.examples.filter(split=split) for split in ("train", "validation"))
    assert (train["label"] != train["true_label"]).sum() == round(0.1 * train.height)
    assert (validation["label"] == validation["true_label"]).all()
    assert train["true_label"].to_list() == load_digits().target[train["example_id"].to_numpy()].tolist()
