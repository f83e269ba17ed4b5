"""Curvature from shared passes against float64; how many passes and how much memory they are planned to take."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lorif_core import curvature, shards
from lorif_core.curvature import fit_curvature
from lorif_core.inverse import PrimalInverse
from lorif_core.manifest import LayerEntry
from lorif_core.options import CurvatureOptions
from lorif_core.passes import Gram, RandomizedSVD, Trace, groups
from lorif_core.store import FactorStore
from tests.lorif_core.test_scoring import CPU, SMALL, index, whole

ROWS = 210
"""More than any layer's D."""


def fit(store: FactorStore, **options: Any) -> dict[str, PrimalInverse]:
    limit = options.pop("memory_limit", 2**30)
    found = fit_curvature(store, CurvatureOptions(**options), CPU, lambda stage, done, total: None, limit)
    assert all(isinstance(inverse, PrimalInverse) for inverse in found.values())
    return found  # type: ignore[return-value]


@pytest.fixture(params=[(1, 32), (1, 4), (2, 16), (0, 16)], ids=str)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FactorStore:
    rank, bits = request.param
    return index(tmp_path, rank, bits, rows=ROWS, sides=SMALL)


def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First rows of the shards, as they are opened from now on."""
    seen: list[int] = []
    real = shards.open_shard

    def watched(folder: Path, entry: Any, trust: bool) -> Any:
        seen.append(entry.start)
        return real(folder, entry, trust)

    monkeypatch.setattr(shards, "open_shard", watched)
    return seen


def test_all_gram_matrices_in_one_pass(store: FactorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "BLOCK_ROWS", 7)  # blocks end inside shards
    seen = opened(monkeypatch)
    found = fit(store, curvature_rank=4, damping_rule="paper", damping=2.0)
    assert seen == [shard.start for shard in store.manifest.shards]
    assert list(found) == [layer.name for layer in store.manifest.layers]
    for name, gradients in whole(store).items():
        values, vectors = (x.flip(-1) for x in torch.linalg.eigh(gradients.T @ gradients))
        kept, computed = min(4, len(values)), min(14, len(values))
        torch.testing.assert_close(found[name].values.double(), values[:kept], rtol=1e-5, atol=0)
        overlap = (vectors[:, :kept].T @ found[name].vectors.double()).abs()
        torch.testing.assert_close(overlap, torch.eye(kept, dtype=torch.float64), rtol=0, atol=2e-3)
        assert found[name].damping == pytest.approx(2 * float(values[:computed].mean()), rel=1e-5)


def test_little_memory_means_more_passes_and_the_same_result(
    store: FactorStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = fit(store, curvature_rank=5)
    limit = max(Gram.needs(layer) for layer in store.manifest.layers)
    seen = opened(monkeypatch)
    with caplog.at_level(logging.INFO):
        found = fit(store, curvature_rank=5, memory_limit=limit)
    bytes_held = [Gram(layer, CPU).bytes for layer in store.manifest.layers]
    passes = seen.count(0)
    assert sum(bytes_held) / limit <= passes <= len(bytes_held)
    assert caplog.text.count("1 passes") == passes
    for name, inverse in expected.items():
        assert torch.equal(found[name].vectors, inverse.vectors) and found[name].damping == inverse.damping


def test_randomized_layers_share_their_passes(store: FactorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly exact where every direction is sought; five passes for all layers together."""
    monkeypatch.setattr(curvature, "GRAM_SIDE", 0)
    seen = opened(monkeypatch)
    found = fit(store, curvature_rank=1000)
    assert seen.count(0) == 5 and len(seen) == 5 * len(store.manifest.shards)
    for name, gradients in whole(store).items():
        values = torch.linalg.eigvalsh(gradients.T @ gradients).flip(0)
        torch.testing.assert_close(found[name].values.double(), values, rtol=1e-3, atol=1e-4 * float(values[0]))
        trace = float(gradients.square().sum())
        assert found[name].damping == pytest.approx(0.5 * trace / ROWS, rel=1e-5)


def test_the_number_of_workers_does_not_change_the_result(tmp_path: Path) -> None:
    store = index(tmp_path, 1, 16, rows=ROWS, sides=SMALL)
    one = fit(store, curvature_rank=5)
    torch.set_num_threads(3)
    try:
        three = fit(store, curvature_rank=5)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one[name].vectors, three[name].vectors) for name in one)


def test_no_directions_cost_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = index(tmp_path, 1, 16, rows=ROWS, sides=SMALL)
    seen = opened(monkeypatch)
    found = fit(store, curvature_rank=0)
    assert seen.count(0) == 1
    for name, gradients in whole(store).items():
        assert found[name].vectors.shape == (gradients.shape[1], 0)
        assert found[name].damping == pytest.approx(0.5 * float(gradients.square().sum()) / ROWS, rel=1e-5)


def test_groups_keep_to_the_limit() -> None:
    def layer(side: int) -> LayerEntry:
        return LayerEntry(f"d{side}", "Linear", side, side, side, side, 0)

    sums = [Gram(layer(d), CPU) for d in (4, 8, 12, 16)] + [
        RandomizedSVD(layer(20), 5, 3, 0, CPU),
        Trace(layer(3), CPU),
    ]
    limit = Gram(layer(16), CPU).bytes
    found = groups(sums, limit)
    assert sorted(id(one) for group in found for one in group) == sorted(id(one) for one in sums)
    for group in found:
        assert sum(one.bytes for one in group) <= limit
        assert len({one.passes for one in group}) == 1
    assert groups(sums[3:4], 1) == [[sums[3]]]  # more than the limit alone: alone
