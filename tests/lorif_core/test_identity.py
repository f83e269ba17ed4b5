"""What an index is of: another objective, another network with the same weights, a curvature that was not written whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import Classification, LoRIF, Objective, StoreError, verify
from lorif_core.digests import model_fingerprint
from lorif_core.manifest import Manifest
from tests.lorif_core.test_store import fitted, loader, network


class Tempered(Objective):
    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]) / self.temperature, batch[1], reduction="none")


def test_an_objective_with_other_settings_is_another_one(tmp_path: Path) -> None:
    LoRIF(network(), Tempered(1.0)).fit(loader(), tmp_path)
    with pytest.raises(StoreError, match=r"Tempered\(temperature=1.0\).*Tempered\(temperature=10.0\)"):
        LoRIF(network(), Tempered(10.0)).fit(loader(), tmp_path)
    with pytest.raises(StoreError, match=r"temperature=10.0"):
        LoRIF.load(tmp_path, network(), Tempered(10.0))
    assert len(LoRIF.load(tmp_path, network(), Tempered(1.0)).self_influence()) == 203


def test_a_network_with_the_same_weights_and_other_activations_is_another_one() -> None:
    def of(*between: nn.Module) -> str:
        torch.manual_seed(0)
        return model_fingerprint(nn.Sequential(nn.Linear(3, 3), *between, nn.Linear(3, 2)))

    assert of(nn.ReLU()) == of(nn.ReLU(inplace=True))
    assert len({of(nn.ReLU()), of(nn.Tanh()), of(nn.LeakyReLU(0.1)), of(nn.LeakyReLU(0.2))}) == 4
    assert of(nn.Dropout(0.1)) == of(nn.Dropout(0.5))


@pytest.mark.parametrize("failing", [0, 1])
def test_killed_while_the_curvature_is_replaced(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any of its writes, what is listed is whole, and both options go on."""
    expected = fitted(tmp_path, damping_rule="trace").score(loader(5))
    written, real = [], Manifest.write

    def write(manifest: Manifest, path: Path) -> None:
        written.append(manifest)
        if len(written) == failing + 1:
            raise KeyboardInterrupt
        real(manifest, path)

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", write)
        with pytest.raises(KeyboardInterrupt):
            for rank in (2, 3):
                fitted(tmp_path, curvature_rank=rank, damping_rule="trace")
    (problem,) = verify(tmp_path)
    assert "curvature." in problem and "not listed" in problem
    loaded = LoRIF.load(tmp_path, network(), damping_rule="trace", curvature_rank=256)
    torch.testing.assert_close(loaded.score(loader(5)), expected)
    torch.testing.assert_close(fitted(tmp_path, damping_rule="trace").score(loader(5)), expected)
    assert verify(tmp_path) == []


def test_a_damaged_curvature_is_refused_by_load_and_fitted_anew_by_fit(tmp_path: Path) -> None:
    expected = fitted(tmp_path).score(loader(5))
    file = tmp_path / "curvature.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoreError, match="call fit again"):
        LoRIF.load(tmp_path, network()).score(loader(5))
    assert torch.equal(fitted(tmp_path).score(loader(5)), expected)
    assert verify(tmp_path) == []


class Positions(nn.Module):
    """Shared position embeddings of [T] ids; a batch may hold texts of one token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(9, 6), nn.Embedding(5, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(x).mean(1))


@pytest.mark.parametrize("length", [1, 3])
def test_position_embeddings_of_texts_of_one_token(length: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Positions()
    rows = TensorDataset(torch.randint(0, 9, (8, length)), torch.randint(0, 3, (8,)))
    found = [
        LoRIF(model, Classification(), bits=32, factor_rank=99, projection="identity")
        .fit(DataLoader(rows, batch_size=size), tmp_path / str(size))
        .score(DataLoader(rows, batch_size=size))
        for size in (1, 4)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
