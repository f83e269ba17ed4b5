"""Gradients of embeddings by their nonzero rows, against one-hot inputs written out.

Axes: B = 5 examples, V = 11 ids, d2 = 4.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lorif_core.factors import factorise
from lorif_core.lookup import Lookup, commonest, every_id, hashed

LOOKUPS = {
    "every id": every_id(11, None),
    "padding": every_id(11, 3),
    "commonest": commonest(torch.tensor([0, 5, 1, 9, 9, 2, 0, 0, 4, 1, 3]), 6, 4),
    "hashed": hashed(torch.randint(0, 2**62, (11,), generator=torch.Generator().manual_seed(0)), 3, 0),
}


def matrix(lookup: Lookup) -> torch.Tensor:
    """P_in [V, d1] from the codes' definition."""
    written = torch.zeros(lookup.shape)
    for row, code in enumerate(lookup.codes.tolist()):
        if code:
            written[row, abs(code) - 1] = 1.0 if code > 0 else -1.0
    return written


@pytest.mark.parametrize("length", [1, 2, 7, 30])
@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_are_those_of_one_hot_inputs(name: str, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    lookup, ids = LOOKUPS[name], torch.randint(0, 11, (5, length), generator=generator)
    dy = torch.randn(5, length, 4, generator=generator)
    expected = matrix(lookup).T @ functional.one_hot(ids, 11).float().mT @ dy  # [d1, V] @ [B, V, T] @ [B, T, d2]
    rows = lookup.rows(ids, dy)
    torch.testing.assert_close(rows.dense(), expected)
    for rank in (1, 2, 3):
        (left, right), (left2, right2) = (factorise({"x": g}, {"x": rank}, 0)["x"] for g in (rows, expected))
        assert left.shape == (5, lookup.width, rank) and right.shape == (5, 4, rank)
        torch.testing.assert_close(left @ right.mT, left2 @ right2.mT, rtol=1e-3, atol=1e-3)


def test_commonest_ids_have_the_columns_and_padding_none() -> None:
    assert LOOKUPS["commonest"].codes.tolist() == [0, 3, 0, 1, 0, 6, 0, 0, 4, 0, 5]
