"""Measured projections keep to the memory limit, and are the same in any number of passes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import CausalLM, Classification, LoRIF
from lorif_core.coverage import cover
from lorif_core.measured import groups
from lorif_core.moments import moment_bytes
from tests.lorif_core.test_store import files
from tests.lorif_core.test_whitening import LanguageModel


def passes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of them since this was asked last."""
    said = [one.getMessage() for one in caplog.records if one.name == "lorif_core.measured"]
    caplog.clear()
    return said


@pytest.mark.parametrize("projection", ["pca", "whitened", "kfac", "kfac_true"])
def test_passes_change_no_bit(projection: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = LanguageModel()  # an embedding, a scale, two linear layers
    texts: Any = DataLoader(torch.randint(19, (24, 7)), batch_size=10)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO):
        for folder, limit in (("one", 2**30), ("many", 1)):
            one = LoRIF(model, CausalLM(), projection=projection, projection_factor=2, memory_limit=limit)
            one.build(texts, tmp_path / folder).run()
            count = 1 if folder == "one" else 4
            said = passes(caplog)
            assert said[0] == f"{projection} projections of 4 layers in {count} passes over a sample"
            assert len(said) == (1 if folder == "one" else 5)  # each layer alone needs more than one byte
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_groups_keep_to_the_limit() -> None:
    layers = cover(nn.Sequential(*(nn.Linear(n, n) for n in (10, 20, 30, 40, 12, 11)))).layers
    limit = moment_bytes(layers[2])
    found = groups(layers, limit)
    assert [layer.name for group in found for layer in group] == [layer.name for layer in layers]
    assert [len(group) for group in found] == [2, 1, 1, 2]
    assert all(sum(map(moment_bytes, group)) <= limit or len(group) == 1 for group in found)


def test_an_estimate_knows_of_the_passes() -> None:
    model = nn.Sequential(*(nn.Linear(200, 200) for _ in range(6)), nn.Linear(200, 3))
    rows = DataLoader(TensorDataset(torch.randn(40, 200), torch.arange(40) % 3), batch_size=20)

    def memory(limit: int) -> int:
        one = LoRIF(model, Classification(), projection_factor=20, curvature_rank=1, memory_limit=limit)
        return one.estimate(rows).memory

    layer = moment_bytes(cover(model).layers[0])
    assert memory(2**30) - memory(2 * layer) >= 4 * layer
