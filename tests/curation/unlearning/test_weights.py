from __future__ import annotations

import math

import numpy as np
import pytest

from curation.unlearning.weights import WeightsError, guard_weights, random_weights, uniform_weights


def test_guard_weights_are_a_softmax_of_minus_a_over_tau_with_mean_one():
    a = np.random.default_rng(0).normal(3, 2, 40)
    found = guard_weights(a, 2.0)
    powers = [math.exp(-x / (2.0 * np.std(a))) for x in a]
    wanted = [40 * p / math.fsum(powers) for p in powers]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-12)
    assert found.values.mean() == pytest.approx(1)
    assert np.array_equal(np.argsort(found.values), np.argsort(-a))  # most aligned, least pushed


def test_an_infinite_temperature_is_uniform_bit_for_bit():
    a = np.random.default_rng(0).normal(size=9)
    assert np.array_equal(guard_weights(a, math.inf).values, uniform_weights(9).values)
    assert np.array_equal(guard_weights(np.full(5, 2.0), 1.0).values, np.ones(5))  # nothing to tell them apart by


def test_the_effective_size_of_normal_alignments_is_the_derived_one():
    a = np.random.default_rng(1).normal(size=20_000)
    for temperature, share in ((1.0, 0.37), (2.0, 0.78), (4.0, 0.94)):
        assert guard_weights(a, temperature).effective_size / len(a) == pytest.approx(share, abs=0.02)


def test_shift_and_scale_of_the_alignments_do_not_matter():
    a = np.random.default_rng(2).normal(size=30)
    np.testing.assert_allclose(guard_weights(a, 2).values, guard_weights(1e6 * a - 7e6, 2).values, rtol=1e-8)


def test_collapsed_weights_are_refused():
    a = np.zeros(1000)
    a[0] = -1.0
    with pytest.raises(WeightsError, match="worth .* of 1000 records"):
        guard_weights(a, 1.0)
    with pytest.raises(WeightsError, match="temperature: expected at least 1"):
        guard_weights(a, 0.5)
    with pytest.raises(WeightsError, match="1 of 3 alignments are not finite"):
        guard_weights(np.array([0.0, np.nan, 1.0]), 2)


def test_opposed_gradients_are_told():
    a = np.random.default_rng(3).normal(size=30)
    assert "oppose each other (cosine -0.80)" in guard_weights(a, 2, opposition=-0.8).warnings[0]
    assert not guard_weights(a, 2, opposition=-0.2).warnings


def test_random_weights_are_as_uneven_and_repeatable():
    found = random_weights(500, 2.0, seed=4)
    assert found.effective_size / 500 == pytest.approx(0.78, abs=0.05)
    assert np.array_equal(found.values, random_weights(500, 2.0, seed=4).values)
    assert not np.array_equal(found.values, random_weights(500, 2.0, seed=5).values)
