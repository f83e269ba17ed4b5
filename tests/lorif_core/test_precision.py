"""bfloat16 is an option of the pass through the model only, recorded with the index."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lorif_core import Classification, LoRIF, StoreError
from lorif_core.query_cache import query_cache

INPUTS, TARGETS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
ROWS = [(INPUTS[i : i + 8], TARGETS[i : i + 8]) for i in range(0, 24, 8)]


class Watched(nn.Module):
    """Remembers the precision its hidden layer's outputs have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 20), nn.Linear(20, 3)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        self.seen.add(hidden.dtype)
        return self.second(torch.relu(hidden))


def test_the_pass_is_in_bfloat16_and_the_scores_are_near(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Watched()
    exact = LoRIF(model, Classification(), bits=32).fit(ROWS, tmp_path / "32").score(ROWS)
    assert model.seen == {torch.float32}
    model.seen.clear()
    half = LoRIF(model, Classification(), bits=32, precision="bf16").fit(ROWS, tmp_path / "bf16")
    scores = half.score(ROWS)
    assert model.seen == {torch.bfloat16} and all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.corrcoef(torch.stack([exact.flatten(), scores.flatten()]))[0, 1] > 0.99
    assert LoRIF.load(tmp_path / "bf16", model).options.precision == "bf16"
    with pytest.raises(StoreError, match="precision: 'bf16' -> '32'"):
        LoRIF(model, Classification(), bits=32).fit(ROWS, tmp_path / "bf16")


def test_queries_of_another_precision_are_others(tmp_path: Path) -> None:
    one = LoRIF(Watched(), Classification()).fit(ROWS, tmp_path)
    caches = [query_cache(one.store, one.model, one.objective, x, one.curvature) for x in ("32", "bf16")]
    assert len({cache.key(ROWS) for cache in caches if cache}) == 2
