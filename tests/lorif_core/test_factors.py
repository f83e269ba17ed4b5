"""Factors of gradients far from one: what float32 can hold is not lost on the way."""

from __future__ import annotations

import pytest
import torch

from lorif_core.factors import factorise


@pytest.mark.parametrize("scale", [1e-12, 1e10])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("positions", [1, 3, 20])
def test_factors_do_not_depend_on_the_scale(positions: int, rank: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(4, positions, 9, generator=generator), torch.randn(4, positions, 7, generator=generator)
    x[0] = 0  # an example without any gradient
    rows = {"x": torch.tensor([1.0, 1.0, 0.5, 4.0]).view(4, 1, 1) * x * scale, "dy": dy * scale}
    left, right = factorise({"layer": (rows["x"], rows["dy"])}, {"layer": rank}, 0)["layer"]
    plain, plain_right = factorise({"layer": (x, dy)}, {"layer": rank}, 0)["layer"]
    found = left.double() @ right.double().mT  # [B, 9, 7]
    wanted = (plain.double() @ plain_right.double().mT) * torch.tensor([1.0, 1.0, 0.5, 4.0]).view(4, 1, 1) * scale**2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
    assert bool(torch.isfinite(left).all())
