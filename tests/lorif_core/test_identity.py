"""What an index is of: another objective, another network with the same weights, a curvature that was not written whole."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import Classification, LoRIF, Objective, StoreError, verify
from lorif_core.digests import ExampleDigest, model_fingerprint
from lorif_core.manifest import Manifest
from lorif_core.objectives import batch_rows, join_rows, select_rows
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


class Tabled(nn.Module):
    """A buffer that is not saved with the weights."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.register_buffer("table", table, persistent=False)


def test_buffers_that_are_not_saved_count_up_to_rounding() -> None:
    def of(table: Tensor) -> str:
        torch.manual_seed(0)
        return model_fingerprint(Tabled(table))

    angles = 10_000 ** -(torch.arange(32) / 32)
    assert of(angles) == of(angles * (1 + 1e-7)) and of(angles) != of(angles * 1.01)
    assert of(torch.tensor([1, 1000])) != of(torch.tensor([1, 1001]))


class Scaled(nn.Linear):
    """Takes a number and a text a row beside its input."""

    def forward(self, input: Tensor, scale: float, names: list[str]) -> Tensor:
        return super().forward(input) * scale * torch.tensor([len(name) for name in names]).unsqueeze(1)


def scaled(*sizes: int, scale: float = 2.0, last: str = "three") -> list[dict[str, Any]]:
    """Thirteen rows in batches of these sizes."""
    names = [*["one", "seven"] * 6, last]
    x, y = torch.randn(13, 4, generator=torch.Generator().manual_seed(0)), torch.arange(13) % 3
    return [
        {"input": a, "labels": b, "scale": scale, "names": names[end - len(a) : end]}
        for a, b, end in zip(x.split(sizes), y.split(sizes), accumulate(sizes), strict=True)
    ]


def test_inputs_that_are_no_tensors_are_part_of_the_data(tmp_path: Path) -> None:
    def of(batches: list[dict[str, Any]]) -> str:
        digest = ExampleDigest()
        for batch in batches:
            digest.update(batch, 0, batch_rows(batch))
        return digest.take()

    (whole,) = scaled(13)
    assert len({of(scaled(13)), of(scaled(6, 6, 1)), of(scaled(*[1] * 13))}) == 1
    assert len({of(scaled(13)), of(scaled(13, scale=3.0)), of(scaled(13, last="eight"))}) == 3
    tensors = {name: x for name, x in whole.items() if isinstance(x, Tensor)}
    assert of([tensors]) == of([tensors | {"nothing": None}]) != of([whole])
    model = Scaled(4, 3)
    expected = LoRIF(model, Classification()).fit(scaled(13), tmp_path / "whole").score(scaled(5, 8))
    found = LoRIF(model, Classification()).fit(scaled(6, 6, 1), tmp_path / "parts").score(scaled(13))
    torch.testing.assert_close(found, expected)
    assert verify(tmp_path / "whole", model, scaled(5, 8)) == []
    for other in (scaled(13, scale=3.0), scaled(13, last="eight")):
        with pytest.raises(StoreError, match="the data or its order changed"):
            LoRIF(model, Classification()).fit(other, tmp_path / "whole")


def test_texts_follow_the_rows_that_are_selected_and_joined() -> None:
    (whole,) = scaled(13)
    assert select_rows(whole, [12, 0])["names"] == ["three", "one"]
    assert join_rows(scaled(6, 6, 1))["names"] == whole["names"] and join_rows(scaled(6, 7))["scale"] == 2.0
    pair = select_rows((torch.arange(3), ("a", "b", "c"), ["a", "b"]), [2])
    assert pair[1:] == (("c",), ["a", "b"])
