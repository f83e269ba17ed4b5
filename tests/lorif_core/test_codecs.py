"""Codecs: what comes back is what was stored, as nearly as the bits allow; the store gives back what was coded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorif_core import LoRIF
from lorif_core.codecs import decode, dequantise, encode, kept_norm, packed_bytes, quantise, row_bytes
from lorif_core.manifest import LayerEntry
from lorif_core.store import FactorStore
from tests.lorif_core.against_oracle import OBJECTIVES, loader
from tests.oracle import zoo

BITS = (8, 4, 2, 1)
LEAST_ERROR = {8: 1e-4, 4: 0.01154, 2: 0.1188, 1: 0.3634}
"""Mean squared error of the best evenly spaced levels for normal numbers of variance one (Max, 1960)."""
FACTORED = LayerEntry("layer", "Linear", 40, 70, 9, 21, 2)
DENSE_LAYERS = ["blocks.*", "head"]
"""No embeddings: most of their numbers are zero, which few bits cannot say."""
WHOLE = LayerEntry("layer", "Linear", 40, 70, 9, 21, 0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", BITS)
def test_the_error_is_the_least_there_is_for_normal_numbers(bits: int) -> None:
    x = normal(200, 1000) * torch.logspace(-12, 12, 200).unsqueeze(1)
    back = dequantise(*quantise(x, bits), 1000, bits)
    error = ((back - x).square().mean(1) / x.square().mean(1)).median()
    assert error < 1.03 * LEAST_ERROR[bits]


@pytest.mark.parametrize("bits", BITS)
def test_codes_of_levels_are_the_levels(bits: int) -> None:
    """Independent of how codes are packed: every level, in every place of a byte, comes back as itself."""
    levels = torch.arange(2**bits) + 0.5 - 2 ** (bits - 1)
    x = levels[torch.randint(2**bits, (50, 13), generator=torch.Generator().manual_seed(1))]
    x[:, 0], x[:, 1] = levels[0], levels[-1]
    codes, scale = quantise(x * 0.25, bits)
    assert codes.dtype == torch.uint8 and codes.shape == (50, packed_bytes(13, bits))
    back = dequantise(codes, scale, 13, bits)
    torch.testing.assert_close(back, x * 0.25, rtol=0.01, atol=0) if bits in (8, 1) else None
    assert torch.equal(back.sign(), x.sign())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("layer", [FACTORED, WHOLE], ids=["factors", "whole"])
def test_zero_gradients_stay_zero(layer: LayerEntry, bits: int) -> None:
    stored = torch.zeros(3, 9, 21) if layer.rank == 0 else (torch.zeros(3, 9, 2), torch.zeros(3, 21, 2))
    tensors = encode(layer, stored, bits)
    block = decode(layer, 0, tensors.__getitem__, bits)
    assert torch.equal(block.dense(torch.device("cpu")), torch.zeros(3, 9 * 21))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("bits", [32, 16, 8, 4, 2, 1])
def test_what_codes_keep_of_the_norm_of_normal_numbers(bits: int, rank: int) -> None:
    layer = LayerEntry("a", "Linear", 60, 60, 60, 60, rank)
    draw = torch.Generator().manual_seed(0)
    sides = torch.randn(2, 500, 60, 1, generator=draw)
    stored = (sides[0], sides[1]) if rank else torch.randn(500, 60, 60, generator=draw)
    tensors = encode(layer, stored, bits)
    kept = decode(layer, 0, tensors.__getitem__, bits).squared_norms().sum()
    whole = (sides.square().sum((2, 3)).prod(0) if rank else stored.square()).sum()
    assert float(kept / whole) == pytest.approx(kept_norm(layer, bits), rel=0.03)


@pytest.mark.parametrize("bits", [32, 16, *BITS])
def test_sides_of_any_size_are_balanced(bits: int) -> None:
    """The left factor carries the singular value: however large, the right one must not drown in its scale."""
    left, right = normal(60, 9, 2) * 1e4, normal(60, 21, 2) / 21**0.5
    tensors = encode(FACTORED, (left, right), bits)
    assert sum(x[0].numel() * x.element_size() for x in tensors.values()) == row_bytes([FACTORED], bits) - 4
    block = decode(FACTORED, 7, tensors.__getitem__, bits)
    expected = (left @ right.mT).flatten(1)
    found = block.dense(torch.device("cpu"))
    similarity = torch.nn.functional.cosine_similarity(found, expected, dim=1).mean()
    assert block.start == 7
    assert similarity > {32: 1 - 1e-6, 16: 0.9999, 8: 0.999, 4: 0.98, 2: 0.85, 1: 0.6}[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("storage", ["factors", "dense"])
def test_an_index_of_few_bits_is_near_the_one_of_many(storage: str, bits: int, tmp_path: Path) -> None:
    case = zoo.build("gpt")

    def gradients(bits: int) -> dict[str, Tensor]:
        options = {"projection": "rademacher", "projection_factor": 2, "storage": storage, "bits": bits}
        options["layers"] = DENSE_LAYERS
        path = tmp_path / f"{storage}-{bits}"
        LoRIF(case.model, OBJECTIVES[case.objective](), **options).fit(loader(case.train), path)
        store = FactorStore.open(path)
        cpu = torch.device("cpu")
        return {x.name: torch.cat([b.dense(cpu) for b in store.blocks(x.name, 3)]) for x in store.manifest.layers}

    exact, coded = gradients(32), gradients(bits)
    for name, expected in exact.items():
        similarity = torch.nn.functional.cosine_similarity(coded[name].flatten(), expected.flatten(), dim=0)
        assert similarity > {8: 0.999, 4: 0.97, 2: 0.8, 1: 0.5}[bits], name


def test_the_gradient_itself_is_stored_where_factors_are_no_smaller(tmp_path: Path) -> None:
    case = zoo.build("gpt")
    for storage, rank in (("dense", 1), ("factors", 1000)):
        attributor = LoRIF(
            case.model, OBJECTIVES[case.objective](), projection="identity", storage=storage, factor_rank=rank
        ).fit(loader(case.train), tmp_path / storage)
        assert {layer.rank for layer in attributor.store.manifest.layers} == {0}
    a, b = (FactorStore.open(tmp_path / storage) for storage in ("dense", "factors"))
    for layer in a.manifest.layers:
        for one, other in zip(a.blocks(layer.name, 4), b.blocks(layer.name, 4), strict=True):
            assert torch.equal(one.left, other.left)
