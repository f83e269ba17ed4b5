"""Layers with fewer rows than numbers, every direction kept: against the inverse of the dense H in float64.

Axes: N = 47 rows (`index`), of layers of D = 189, 192, 870 > N and 48, 5.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import Classification, LoRIF, curvature
from lorif_core.curvature import DUAL_BYTES, MEMORY_LIMIT, fit_curvature, kernel_inverses, whole_layers
from lorif_core.inverse import DualInverse, KernelInverse, LayerInverse, PrimalInverse
from lorif_core.options import CurvatureOptions
from lorif_core.scoring import all_scores, prepared, self_influence
from lorif_core.store import FactorStore
from tests.lorif_core.test_scoring import CPU, ROWS, index, queries_of, whole

RULES = {"mean_norm": 0.5, "trace": 3.0, "paper": 0.1, "absolute": 20.0}


def fitted(store: FactorStore, **options: object) -> dict[str, LayerInverse]:
    return fit_curvature(store, CurvatureOptions(**options), CPU, lambda stage, done, total: None)  # type: ignore[arg-type]


def lambda_of(rule: str, gradients: Tensor) -> float:
    """By the rule's own words, over every direction."""
    trace, (examples, size) = float(gradients.square().sum()), gradients.shape
    scale = {
        "mean_norm": trace / examples,
        "trace": trace / size,
        "paper": trace / min(gradients.shape),
        "absolute": 1.0,
    }
    return RULES[rule] * scale[rule]


@pytest.mark.parametrize("rank", ["auto", 1000])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stored", [(1, 16), (2, 32), (0, 16)], ids=str)
def test_an_index_is_scored_by_the_dense_inverse(
    tmp_path: Path, stored: tuple[int, int], rule: str, rank: int | str
) -> None:
    store = index(tmp_path, *stored)
    found = fitted(store, curvature_rank=rank, damping=RULES[rule], damping_rule=rule)
    queries, scores, own = queries_of(store, 4), torch.zeros(4, ROWS).double(), torch.zeros(ROWS).double()
    for name, gradients in whole(store).items():
        assert isinstance(found[name], KernelInverse if gradients.shape[1] > ROWS else PrimalInverse)
        lam = lambda_of(rule, gradients)
        assert found[name].damping == pytest.approx(lam, rel=1e-6)
        h = gradients.T @ gradients + lam * torch.eye(gradients.shape[1])
        applied = torch.linalg.solve(h, gradients.T)  # H^-1 G^T [D, N]
        scores += queries[name].flatten(1).double() @ applied
        own += (gradients.T * applied).sum(0)
    assert {type(x) for x in found.values()} == {KernelInverse, PrimalInverse}
    ready = prepared(queries, found, ROWS)
    torch.testing.assert_close(
        all_scores(store, ready, found, CPU, lambda done: None).double(),
        scores,
        rtol=0,
        atol=1e-5 * float(scores.abs().max()),
    )
    torch.testing.assert_close(self_influence(store, found, CPU, lambda done: None).double(), own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("damping", [1e-3, 1e-1, 1.0, 1e4])
def test_rows_of_every_size(damping: float) -> None:
    """Repeated, tiny and huge rows, and one of zeros: each score and self-influence to a relative error of its own."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 90, generator=generator, dtype=torch.float64)
    rows *= 10.0 ** torch.linspace(-3, 1, 40, dtype=torch.float64).unsqueeze(1)
    rows[7], rows[20] = rows[30], 0
    query = torch.randn(5, 90, generator=generator, dtype=torch.float64)
    inverse = KernelInverse.of(rows @ rows.T, damping)
    dense = torch.linalg.inv(rows.T @ rows + damping * torch.eye(90))
    expected, own = query @ dense @ rows.T, ((rows @ dense) * rows).sum(1)
    torch.testing.assert_close(inverse.scores(query @ rows.T).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inverse.self_influence().double(), own, rtol=1e-5, atol=1e-9)
    assert float(inverse.self_influence()[20]) < 1e-12


def test_a_damping_lost_in_rounding_is_refused() -> None:
    rows = torch.ones(8, 20, dtype=torch.float64)
    with pytest.raises(ValueError, match="raise damping, or name a curvature_rank below"):
        KernelInverse.of(rows @ rows.T, 1e-18)


def test_a_rank_that_is_named_is_the_truncation_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = index(tmp_path, 1, 16)
    found = fitted(store, curvature_rank=ROWS - 1)
    assert isinstance(found["layer4"], DualInverse) and found["layer4"].weights.shape == (ROWS, ROWS - 1)

    def chosen(examples: int, memory_limit: int = MEMORY_LIMIT) -> set[str]:
        return whole_layers(store.manifest.layers, examples, CurvatureOptions(), memory_limit)

    assert chosen(ROWS) == {"layer0", "layer2", "layer4", "layer1"}
    assert not chosen(8192)  # three matrices of half a gigabyte
    enough = (4 * 8 + DUAL_BYTES) * ROWS**2
    assert chosen(ROWS, enough) and not chosen(ROWS, enough - 1)
    monkeypatch.setattr(curvature, "KERNEL_NUMBERS", 50)
    assert chosen(ROWS) == {"layer0", "layer1", "layer2"}
    monkeypatch.setattr(curvature, "KERNEL_BYTES", 0)
    assert isinstance(fitted(store)["layer4"], DualInverse)


def test_auto_damping_is_chosen_from_every_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the eigenvectors of a `DualInverse` that has them all."""
    store = index(tmp_path, 1, 16)
    for shard in store.manifest.shards:
        shard.energy.update(dict.fromkeys((x.name for x in store.manifest.layers), 0.0))
    whole_ones = fitted(store, damping="auto")
    monkeypatch.setattr(curvature, "KERNEL_BYTES", 0)
    others = fitted(store, damping="auto")
    assert isinstance(whole_ones["layer4"], KernelInverse) and isinstance(others["layer4"], DualInverse)
    for name, one in whole_ones.items():
        assert one.damping == pytest.approx(others[name].damping, rel=1e-6)


def test_nothing_of_it_is_kept_and_it_is_made_anew(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 17), torch.nn.Tanh(), torch.nn.Linear(17, 3))
    loader = DataLoader(TensorDataset(torch.randn(30, 20), torch.randint(3, (30,))), batch_size=8)
    one = LoRIF(model, Classification(), projection="identity").fit(loader, tmp_path)
    scores, own = one.score(loader), one.self_influence()
    assert all(isinstance(x, KernelInverse) for x in one.curvature.values())
    assert (tmp_path / "curvature.safetensors").stat().st_size < 100
    again = LoRIF.load(tmp_path, model)
    assert torch.equal(again.score(loader), scores) and torch.equal(again.self_influence(), own)
    other = LoRIF.load(tmp_path, model, damping=2.0)
    expected = LoRIF(model, Classification(), projection="identity", damping=2.0).fit(loader, tmp_path / "other")
    assert torch.equal(other.score(loader), expected.score(loader))
    made = kernel_inverses(one.store, {"0": one.curvature["0"].damping}, CPU)
    assert isinstance(made["0"], KernelInverse) and torch.equal(made["0"].factor, vars(one.curvature["0"])["factor"])
