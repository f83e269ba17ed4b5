"""What an index will take is what it takes, as far as that can be told; nothing is written, the model is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import CausalLM, Classification, LoRIF
from tests.oracle import zoo

ROWS = 300


@pytest.fixture
def rows() -> DataLoader[tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(ROWS, 12, generator=draw), torch.arange(ROWS) % 3), batch_size=32)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 70), nn.ReLU(), nn.Linear(70, 3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"projection": "identity", "bits": 32},
        {"projection": "whitened", "projection_factor": 2.5, "bits": 4},
        {"projection": "rademacher", "storage": "dense", "bits": 1},
        {"bytes_per_example": 40},
        {"projection": "kfac"},
        {"curvature_rank": 0},
        {"projection": "identity", "curvature_rank": 20, "layers": "2"},
    ],
    ids=str,
)
def test_bytes_are_those_of_the_index(
    options: dict[str, Any], model: nn.Module, rows: DataLoader[tuple[Tensor, ...]], tmp_path: Path
) -> None:
    attributor = LoRIF(model, Classification(), **options)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = attributor.estimate(rows)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    store = attributor.fit(rows, tmp_path / "index").store
    assert (expected.examples, expected.layers) == (ROWS, len(store.manifest.layers))
    assert expected.bytes_per_example == store.bytes_per_example and expected.plan == store.manifest.plan
    written = sum(shard.bytes for shard in store.manifest.shards) + sum(
        (store.path / file).stat().st_size
        for file in store.manifest.files
        if file.startswith(("projection", "curvature"))
    )
    assert expected.bytes == pytest.approx(written, rel=0.1, abs=3000)  # headers aside
    assert expected.index_seconds > 0 and expected.memory > 0
    assert (expected.curvature_seconds > 0) == (options.get("projection") != "kfac")


def test_ids_are_counted_not_squared() -> None:
    vocabulary = 5_000
    text = DataLoader([torch.randint(vocabulary, (3,)) for _ in range(40)], batch_size=20)
    model = nn.Sequential(nn.Embedding(vocabulary, 20), nn.Linear(20, vocabulary))
    assert LoRIF(model, CausalLM(), layers="0").estimate(text).memory < vocabulary**2


def test_no_gram_matrix_beyond_the_limit(model: nn.Module, rows: DataLoader[tuple[Tensor, ...]]) -> None:
    def memory(limit: int) -> int:
        return LoRIF(model, Classification(), curvature_rank=2, memory_limit=limit).estimate(rows).memory

    assert memory(1) < memory(2**30)


def test_padded_texts_without_a_length_are_refused() -> None:
    case = zoo.build("gpt_padded")
    with pytest.raises(ValueError, match="does not say how many examples"):
        LoRIF(case.model, CausalLM()).estimate([case.train[0]])
