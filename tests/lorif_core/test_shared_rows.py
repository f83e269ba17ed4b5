"""Self-influence of some shards a worker: together it is that of one process, whatever form a layer's inverse has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from lorif_core import Classification, LoRIF
from lorif_core import store as store_module
from lorif_core.inverse import DualInverse, KernelInverse, PrimalInverse
from lorif_core.shared_rows import self_influence_of_share
from tests.lorif_core.test_store import loader, network


@pytest.mark.parametrize(
    ("rows", "rank", "form"), [(203, 5, PrimalInverse), (20, 5, DualInverse), (20, "auto", KernelInverse)]
)
def test_shares_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, rank: int | Literal["auto"], form: type
) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 1500)
    one = LoRIF(network(), Classification(), projection="identity", curvature_rank=rank).fit(loader(rows), tmp_path)
    assert form in {type(inverse) for inverse in one.curvature.values()} and len(one.store.manifest.shards) > 1
    for workers in (1, 2, 30):  # the last with more workers than shards
        shares = [self_influence_of_share(one, worker, workers) for worker in range(workers)]
        torch.testing.assert_close(torch.cat(shares), one.self_influence(), rtol=1e-6, atol=0)
