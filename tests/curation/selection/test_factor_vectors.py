"""Vectors of stored gradients against the gradients that autograd makes one by one in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn.functional import normalize

from curation.selection.factor_vectors import factor_vectors
from curation.selection.similarity import unit
from lorif_core import GradDot
from tests.curation.selection.test_aggregate import POOL, fitted, gradients, network, sharded


def test_cosines_are_those_of_the_gradients(tmp_path: Path) -> None:
    vectors = factor_vectors(fitted(tmp_path / "index", GradDot).store, directions=4096)
    unit_gradients = normalize(gradients(network(), POOL)[1], dim=1)
    exact = (unit_gradients @ unit_gradients.T).numpy()  # [N, D] @ [D, N] -> [N, N]
    found = unit(vectors) @ unit(vectors).T
    assert np.abs(found - exact).max() < 6 / 4096**0.5 and np.ptp(exact) > 0.5


@pytest.mark.parametrize("options", [{}, {"bits": 4, "factor_rank": 1}], ids=["whole", "4 bits"])
def test_the_same_bit_for_bit_with_1_4_and_16_shards(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [one.store for one in sharded(tmp_path, monkeypatch, GradDot, **options)]
    found = [factor_vectors(store, directions=32) for store in stores]
    assert all(np.array_equal(one, found[0]) for one in found) and found[0].dtype == np.float32
    assert not np.array_equal(found[0], factor_vectors(stores[0], directions=32, seed=1))
