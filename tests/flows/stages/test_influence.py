"""What the score stage asks of the index, in shares."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from curation.data import CuratedData
from flows.schema import CleanConfig
from flows.stages import influence as influence_module
from flows.stages.common import new_model, open_data
from flows.stages.influence import _merged, influence, of_share, shared
from lorif_core import Classification, LoRIF
from lorif_core import store as store_module

ASKED = {"self_influence": True, "proponent_votes": True, "trusted_influence": True, "neighbours": 3}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], LoRIF, CuratedData]:
    """A job, and the attributor of an index of some shards."""
    tree = {
        "data": {"class_path": "Digits"},
        "model": {"class_path": "ImageClassifier", "init_args": {"arch": "mlp", "hidden": [8]}},
        "index": {"workers": 3},
        "signals": ASKED,
    }
    arguments = CleanConfig.model_validate(tree).model_dump(mode="json") | {"data_digest": None}
    data = open_data(arguments)
    attributor = LoRIF(new_model(arguments, data, seed=0), Classification(), projection_factor=4, curvature_rank=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_BYTES", 20_000)
        attributor.fit(data.ordered_dataloader("train", 128), tmp_path_factory.mktemp("index"))
    assert len(attributor.store.manifest.shards) > 4
    return arguments, attributor, data


@pytest.mark.parametrize("workers", [2, 3])
def test_shares_make_what_one_process_finds(opened: tuple[dict[str, Any], LoRIF, CuratedData], workers: int) -> None:
    arguments, attributor, data = opened
    whole = influence(arguments, Path(), attributor, data, lambda text, done, total: None)
    shares = [of_share(arguments, attributor, data, worker, workers) for worker in range(workers)]
    found = _merged(shares, len(data.validation_dataset))
    assert list(found) == list(whole) == ["self_influence", "proponents", "proponent_scores", "trusted_influence"]
    assert torch.equal(found["self_influence"], attributor.self_influence().double())
    for name in whole:
        torch.testing.assert_close(found[name], whole[name], rtol=1e-4, atol=1e-7)


def test_a_small_index_stays_in_the_process(
    opened: tuple[dict[str, Any], LoRIF, CuratedData],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, attributor, data = opened
    alone = arguments | {"index": arguments["index"] | {"workers": 1}}
    with caplog.at_level(logging.INFO, "flows.stages.influence"):
        assert not shared(arguments, attributor.store, len(data.validation_dataset))
    assert "fewer than 1e+12: done by this process" in caplog.text
    monkeypatch.setattr(influence_module, "SHARED_FROM", 1e6)
    assert shared(arguments, attributor.store, len(data.validation_dataset))
    assert not shared(alone, attributor.store, len(data.validation_dataset))
