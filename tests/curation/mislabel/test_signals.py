from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.stats import rankdata

from curation.mislabel import Forward, kernel_loo, proponent_votes, rank_average, signals
from curation.mislabel.signals import ranks

ROWS, K = 60, 3


def forward_of(rows: int = ROWS, wrong: int = 6) -> tuple[Forward, np.ndarray]:
    """A pass of a model that separates three clouds and is sure of every row, and which rows are wrong."""
    rng = np.random.default_rng(0)
    right = np.arange(rows) % K
    hidden = (3 * np.eye(K)[right] + 0.3 * rng.normal(size=(rows, K))).astype(np.float32)
    given = right.copy()
    given[:wrong] = (right[:wrong] + 1) % K
    return Forward((hidden,), hidden + 0.5 * np.eye(K, dtype=np.float32)[given], given, ("head",)), given != right


def test_every_column_is_there_finite_and_higher_for_wrong_labels() -> None:
    forward, wrong = forward_of()
    proponents = np.argsort(-(forward.features @ forward.features.T), axis=1)[:, 1:6]
    frame = signals(
        forward,
        self_influence=wrong + 0.1,
        proponent_labels=forward.labels[proponents],
        proponent_scores=np.ones(proponents.shape),
        trusted_influence=-1.0 * wrong,
        average=("kernel_loo", "loss"),
    )
    assert frame.columns == [
        "kernel_loo",
        "loo_logits",
        "loss",
        "margin",
        "self_influence",
        "proponent_votes",
        "trusted_influence",
        "rank_average",
    ]
    assert frame.schema == dict.fromkeys(frame.columns, pl.Float64)
    for name in frame.columns:
        values = frame[name].to_numpy()
        assert np.isfinite(values).all(), name
        assert values[wrong].min() > values[~wrong].max(), name


def test_columns_by_definition() -> None:
    forward, _ = forward_of()
    frame = signals(forward)
    scores, rows = kernel_loo(forward.inputs, forward.labels, K), range(ROWS)
    others = [[k for k in range(K) if k != forward.labels[i]] for i in rows]
    expected = [scores[i, others[i]].max() - scores[i, forward.labels[i]] for i in rows]
    np.testing.assert_allclose(frame["kernel_loo"], expected)
    powers = np.exp(forward.logits.astype(np.float64))
    own = powers[np.arange(ROWS), forward.labels] / powers.sum(axis=1)
    np.testing.assert_allclose(frame["loss"], -np.log(own), atol=1e-12)
    assert signals(forward, kernel_scores=scores)["kernel_loo"].equals(frame["kernel_loo"])


def test_ranks_share_ties_as_scipy_does() -> None:
    values = np.array([3.0, 1.0, 3.0, 3.0, -2.0, 1.0])
    np.testing.assert_allclose(ranks(values), (rankdata(values) - 1) / 5)
    np.testing.assert_array_equal(ranks(np.full(4, 2.0)), 0.5)
    np.testing.assert_array_equal(ranks(np.ones(1)), 0.5)


def test_a_constant_signal_moves_nothing_in_an_average_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    columns = {"a": np.array([0.1, 0.7, 0.7, 0.2]), "flat": np.zeros(4)}
    averaged = rank_average(columns, ["a", "flat"])
    np.testing.assert_allclose(averaged, (ranks(columns["a"]) + 0.5) / 2)
    forward, _ = forward_of()
    with caplog.at_level(logging.WARNING):
        signals(forward, self_influence=np.zeros(ROWS))
    assert "self_influence" in caplog.text


def test_votes() -> None:
    labels = np.array([0, 1, 2, 0])
    proponents = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 0], [1, 2, 2]])
    np.testing.assert_allclose(proponent_votes(proponents, labels, K), [1 / 3, -1, 2 / 3, 2 / 3])
    scores = np.array([[1.0, 1.0, 2.0], [1.0, 0.5, 0.1], [3.0, 1.0, -9.0], [-1.0, -2.0, -3.0]])
    np.testing.assert_allclose(proponent_votes(proponents, labels, K, scores), [0, -1, 3 / 4, 0])


def test_order_of_rows_moves_with_them() -> None:
    forward, _ = forward_of()
    order = np.random.default_rng(1).permutation(ROWS)
    moved = Forward((forward.features[order],), forward.logits[order], forward.labels[order])
    expected, found = signals(forward), signals(moved)
    for name in ("loo_logits", "loss", "margin", "kernel_loo"):
        np.testing.assert_allclose(found[name], expected[name].to_numpy()[order], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_influence": np.full(ROWS, np.nan)}, "self_influence.*index 0"),
        ({"trusted_influence": np.zeros(3)}, r"trusted_influence: expected shape \[60\]"),
        ({"proponent_labels": np.zeros((3, 2), dtype=int)}, "proponent_labels"),
        ({"proponent_labels": np.full((ROWS, 2), K)}, "codes from 0 to 2"),
        ({"proponent_labels": np.zeros((ROWS, 2), dtype=int), "proponent_scores": np.zeros((ROWS, 3))}, "scores"),
        ({"average": ("loss", "luck")}, "no such signals to average: luck; there are kernel_loo, loo_logits"),
        ({"kernel_scores": np.zeros((ROWS, K + 1))}, "kernel_scores"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        signals(forward_of()[0], **options)
    with pytest.raises(ValueError, match="codes"):
        signals(replace(forward_of()[0], labels=np.full(ROWS, K)))
