"""The leading directions of a wide side's second moment, found by iteration, hold as much as the exact ones."""

from __future__ import annotations

import pytest
import torch

from lorif_core.projections import EIGH_SIDE, top_eigenpairs


@pytest.mark.parametrize(("decay", "scale"), [(0.5, 1.0), (1.0, 1e-42), (2.0, 1e42)])
def test_iterated_directions_hold_what_the_best_do(decay: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    size, wanted = EIGH_SIDE + 44, 75
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.arange(1.0, size + 1, dtype=torch.float64) ** -decay
    moment = rotation * spectrum @ rotation.T
    values, vectors = top_eigenpairs(scale * moment, wanted)
    double = vectors.double()
    torch.testing.assert_close(double.T @ double, torch.eye(wanted, dtype=torch.float64), rtol=0, atol=1e-5)
    held = (double * (moment @ double)).sum(0)
    assert float(held.sum()) >= 0.985 * float(spectrum[:wanted].sum())
    torch.testing.assert_close(values / scale, held, rtol=1e-4, atol=1e-6)
    assert bool((values.diff() <= 0).all())
    assert torch.equal(vectors, top_eigenpairs(scale * moment, wanted)[1])


def test_a_direction_a_million_times_the_others_hides_none_of_them() -> None:
    generator = torch.Generator().manual_seed(0)
    size, wanted = EIGH_SIDE + 144, 100
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    spectrum = 1 / torch.arange(1.0, size + 1, dtype=torch.float64)
    spectrum[0] = 1e6
    vectors = top_eigenpairs(rotation * spectrum @ rotation.T, wanted)[1].double()
    others = rotation[:, 1:] * spectrum[1:] @ rotation[:, 1:].T
    assert float((vectors * (others @ vectors)).sum()) >= 0.995 * float(spectrum[1:wanted].sum())
