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


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4, 1e-6])
def test_factors_are_no_larger_than_a_gradient_whose_parts_cancel(spread: float) -> None:
    """Of nearly equal inputs and output gradients that sum to zero, as an attention's keys can have them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 32, generator=generator) + spread * torch.randn(64, 2, 32, generator=generator)
    dy = torch.randn(64, 2, 32, generator=generator)
    dy -= dy.mean(1, keepdim=True)
    left, right = factorise({"layer": (x, dy)}, {"layer": 1}, 0)["layer"]
    whole = x.double().mT @ dy.double()  # [B, 32, 32], of rank 2, nearly 1
    off = (whole - left.double() @ right.double().mT).norm(dim=(1, 2)) / whole.norm(dim=(1, 2))
    assert float(off.max()) < max(1.01 * (spread < 1e-3), 1e-3)
