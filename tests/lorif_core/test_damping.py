"""Damping: the rules, and `auto` against rows really left out.

Axes: N = 30 examples, D a layer's flattened gradient, r curvature rank.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import Classification, LoRIF, StoreError
from lorif_core.damping import (
    MULTIPLIERS,
    Sampled,
    chosen_damping,
    damping_of,
    evenly_spaced,
    left_out_damping,
    lost_damping,
    sampled,
    spread,
)
from lorif_core.options import CurvatureOptions


def gradients(count: int, size: int, noise: float = 1.0) -> Tensor:
    """A few strong directions and noise, float64 [count, size]."""
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(count, 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, size, generator=generator, dtype=torch.float64
    )
    return strong + noise * torch.randn(count, size, generator=generator, dtype=torch.float64)


def some(rows: Tensor, rank: int) -> tuple[Sampled, Tensor]:
    """All rows, in the basis of their first `rank` singular directions, and S^2."""
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    gram = None if rank == len(singular) else rows @ rows.T
    return sampled(rows @ vectors[:rank].T, gram, len(rows)), singular[:rank].square()


@pytest.mark.parametrize("size", [12, 90])
@pytest.mark.parametrize("rank", [0, 5, None])
def test_spread_equals_refits_without_each_query(size: int, rank: int | None) -> None:
    """Every row in turn a query that is left out of the matrix that is inverted; all others as they are."""
    rows, damping, count = gradients(30, size), 3.0, min(30, size) if rank is None else rank
    vectors = torch.linalg.svd(rows, full_matrices=False)[2][:count].T  # [D, r]

    def inverse(kept: Tensor) -> Tensor:
        inner = vectors.T @ kept.T @ kept @ vectors
        return torch.linalg.inv(vectors @ inner @ vectors.T + damping * torch.eye(size))

    between = 0.0
    for i in range(30):
        others = rows[torch.arange(30) != i]
        query = rows[i] / rows[i].norm()
        between += float((others @ inverse(others) @ query).square().sum()) / 30
    own = float(torch.einsum("nd,de,ne->n", rows, inverse(rows), rows).mean())
    assert spread(*some(rows, count), damping) == pytest.approx(between / own**2, rel=1e-9)


@pytest.mark.parametrize("tail", [0.0, 1.5], ids=["alike", "heavy-tailed"])
def test_chosen_is_near_the_best_cosine_with_ideal_scores(tail: float) -> None:
    """The criterion sees a sample; the angle of scores of new queries to the ideal ones is known here."""
    count, size = 60, 120
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.arange(1, size + 1, dtype=torch.float64) ** -1.5

    def drawn(n: int) -> Tensor:
        lengths = torch.exp(tail * torch.randn(n, 1, generator=generator, dtype=torch.float64))
        return torch.randn(n, size, generator=generator, dtype=torch.float64) * spectrum.sqrt() * lengths

    rows = drawn(count)
    queries = torch.nn.functional.normalize(drawn(20_000))
    directions = queries.T @ queries / len(queries)
    ideal = torch.linalg.solve(directions, rows.T)  # M^-1 g [D, N]
    data, values = some(rows, count)

    def cosine(damping: float) -> float:
        found = torch.linalg.solve(rows.T @ rows + damping * torch.eye(size), rows.T)
        return float(torch.nn.functional.cosine_similarity((queries @ found).flatten(), (queries @ ideal).flatten(), 0))

    mean_norm = float(rows.square().sum()) / count
    chosen = chosen_damping(data, values, mean_norm)
    assert cosine(chosen) > 0.98 * max(cosine(multiplier * mean_norm) for multiplier in MULTIPLIERS)


def test_heavier_tails_more_damping() -> None:
    """In units of the mean squared norm, which the choice is otherwise indifferent to."""
    sizes = torch.randn(200, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    chosen = []
    for tail in (0.0, 1.0, 2.0):
        rows = gradients(200, 40) * torch.exp(tail * sizes)
        norm = float(rows.square().sum()) / 200
        chosen.append(chosen_damping(*some(rows, 40), norm) / norm)
        assert chosen_damping(*some(100 * rows, 40), 1e4 * norm) == pytest.approx(1e4 * chosen[-1] * norm, rel=1e-6)
    assert chosen[0] < chosen[1] < chosen[2]


def test_directions_without_any_gradient_change_nothing() -> None:
    rows = gradients(30, 20)
    wider = torch.cat([rows, torch.zeros(30, 100, dtype=torch.float64)], 1)
    norm = float(rows.square().sum()) / 30
    assert chosen_damping(*some(wider, 20), norm) == pytest.approx(chosen_damping(*some(rows, 20), norm))


def test_duplicates_and_lone_directions_stay_finite() -> None:
    rows = torch.eye(6, dtype=torch.float64)[[0, 0, 1, 2, 3, 4]]
    data, values = some(rows, 6)
    assert all(torch.isfinite(torch.tensor(spread(data, values, damping))) for damping in (1e-12, 1.0, 1e9))


def test_where_nothing_can_be_told_the_scale_itself_is_chosen() -> None:
    none = torch.zeros(3, dtype=torch.float64)
    assert chosen_damping(Sampled(torch.zeros(3, 2, dtype=torch.float64), none, none), torch.ones(2), 4.0) == 4.0
    assert chosen_damping(Sampled(torch.eye(3, dtype=torch.float64), none, none), torch.ones(3), 1.0) == 1.0


def test_few_sampled_rows_stand_for_all() -> None:
    """What lies outside V is known of the sampled rows only, and scaled to all."""
    rows = gradients(400, 30)
    vectors = torch.linalg.svd(rows, full_matrices=False)[2][:4].T
    few = rows[::2]
    parts = [sampled(part @ vectors, part @ part.T, 400) for part in (rows, few)]
    torch.testing.assert_close(parts[1].outside, parts[0].outside[::2])
    assert float(parts[1].shared.mean()) == pytest.approx(float(parts[0].shared.mean()), rel=0.1)


def test_the_mean_eigenvalue_left_out_is_added() -> None:
    assert left_out_damping(trace=10.0, values=torch.tensor([4.0, 2.0]), examples=4, size=100) == 2.0
    assert left_out_damping(trace=10.0, values=torch.tensor([6.0, 4.0]), examples=2, size=100) == 0.0
    assert left_out_damping(trace=10.0, values=torch.tensor([9.0]), examples=100, size=1) == 0.0


def test_half_of_lost_energy_is_spread_over_the_directions_there_can_be() -> None:
    assert lost_damping(whole=10.0, stored=4.0, examples=3, size=100) == 1.0
    assert lost_damping(whole=10.0, stored=4.0, examples=100, size=3) == 1.0
    assert lost_damping(whole=4.0, stored=4.001, examples=3, size=100) == 0.0


def test_rules() -> None:
    def lam(rule: str, trace: float = 12.0) -> float:
        options = CurvatureOptions(damping=0.5, damping_rule=rule)  # type: ignore[arg-type]
        return damping_of(options, trace, examples=4, size=6, mean_value=7.0)

    assert [lam(rule) for rule in ("mean_norm", "trace", "paper", "absolute")] == [1.5, 1.0, 3.5, 0.5]
    assert lam("mean_norm", trace=0.0) == 0.5


def test_evenly_spaced() -> None:
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert evenly_spaced(101, 3).tolist() == [0, 50, 100]


class Net(nn.Module):
    """Positions share the weights, so that rank-1 factors lose something."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(20, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).mean(1))


@pytest.fixture
def problem() -> tuple[Net, DataLoader[tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    x, y = torch.randn(40, 5, 20), torch.randint(3, (40,))
    return Net(), DataLoader(TensorDataset(x, y), batch_size=16)


@pytest.mark.parametrize("rank", [0, 4, 1000])
def test_auto_of_an_index(problem: tuple[Net, DataLoader[tuple[Tensor, ...]]], tmp_path: Path, rank: int) -> None:
    """Chosen a layer, recorded, kept for the next load, and the scores are those of that number."""
    model, loader = problem
    fitted = LoRIF(model, Classification(), curvature_rank=rank, damping="auto", projection_factor=1).fit(
        loader, tmp_path
    )
    record = fitted.store.manifest.curvature
    assert record is not None
    assert record["options"]["damping"] == "auto"
    assert set(record["damping"]) == {"first", "last"}
    scores = fitted.score(loader)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(LoRIF.load(tmp_path, model).score(loader), scores)
    name, value = "last", record["damping"]["last"]
    alone = LoRIF.load(tmp_path, model, damping=value, damping_rule="absolute")
    assert alone.curvature[name].damping == pytest.approx(value)


def test_between_auto_and_a_number_nothing_is_rescaled(
    problem: tuple[Net, DataLoader[tuple[Tensor, ...]]], tmp_path: Path
) -> None:
    model, loader = problem
    LoRIF(model, Classification(), damping="auto").fit(loader, tmp_path / "auto")
    number = LoRIF(model, Classification(), damping=2.0).fit(loader, tmp_path / "number")
    loaded = LoRIF.load(tmp_path / "auto", model, damping=2.0)
    for name, inverse in number.curvature.items():
        assert loaded.curvature[name].damping == pytest.approx(inverse.damping)
    auto, again = LoRIF.load(tmp_path / "auto", model), LoRIF.load(tmp_path / "number", model, damping="auto")
    for name, inverse in auto.curvature.items():
        assert again.curvature[name].damping == pytest.approx(inverse.damping)
    doubled = LoRIF.load(tmp_path / "number", model, damping=4.0)
    for name, inverse in number.curvature.items():
        assert doubled.curvature[name].damping == pytest.approx(2 * inverse.damping)


def test_index_records_what_factors_lost(problem: tuple[Net, DataLoader[tuple[Tensor, ...]]], tmp_path: Path) -> None:
    model, loader = problem
    fitted = LoRIF(model, Classification(), projection="identity", bits=32).fit(loader, tmp_path)
    whole = dict.fromkeys(("first", "last"), 0.0)
    for batch in fitted.gradients(loader):
        for name, gradient in batch.items():
            whole[name] += float(gradient.double().square().sum())
    for name, value in whole.items():
        assert fitted.store.manifest.energy(name) == pytest.approx(value, rel=1e-5)
        stored = sum(float(b.dense(torch.device("cpu")).square().sum()) for b in fitted.store.blocks(name, 7))
        assert stored < value if name == "first" else stored == pytest.approx(value, rel=1e-5)


def test_index_that_does_not_say_what_was_lost(
    problem: tuple[Net, DataLoader[tuple[Tensor, ...]]], tmp_path: Path
) -> None:
    model, loader = problem
    manifest = LoRIF(model, Classification()).fit(loader, tmp_path).store.manifest
    older = [shard.__class__(**{**vars(shard), "energy": {}}) for shard in manifest.shards]
    manifest.with_(shards=older).write(tmp_path)
    with pytest.raises(StoreError, match="give damping a number"):
        LoRIF.load(tmp_path, model, damping="auto").score(loader)


def test_neither_auto_nor_a_number_is_refused(problem: tuple[Net, DataLoader[tuple[Tensor, ...]]]) -> None:
    with pytest.raises(ValueError, match="damping: expected a finite number > 0 or 'auto', got 'automatic'"):
        LoRIF(problem[0], Classification(), damping="automatic")  # type: ignore[arg-type]
