"""Aggregated scores against tables of all scores, and against gradients that autograd makes one by one in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from curation.errors import DataError, ModelError
from curation.selection import group_scores as module
from curation.selection.adam import Moments
from curation.selection.aggregate import aggregate, turns
from curation.selection.best import BestRows
from curation.selection.checkpoints import Checkpoint
from curation.selection.pairs import pair_scores
from curation.selection.pool import Best
from lorif_core import Classification, GradDot, LoRIF
from lorif_core import index as index_module

ROWS, TARGETS = 61, 7
GROUPS = ["a", "b", "a", "c", "b", "a", "c"]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Embedding(11, 6), nn.Flatten(), nn.LayerNorm(18), nn.Linear(18, 20), nn.Tanh(), nn.Linear(20, 3)
    )


def batches(rows: int, seed: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(11, (rows, 3), generator=generator), torch.randint(3, (rows,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


POOL, TARGET = batches(ROWS, 1), batches(TARGETS, 2, 3)
EXACT: dict[str, Any] = {"projection": "identity", "factor_rank": 99, "bits": 32}


def fitted(path: Path, kind: type[LoRIF] = LoRIF, model: nn.Module | None = None, **options: Any) -> LoRIF:
    return kind(model or network(), Classification(), **{**EXACT, **options}).fit(POOL, path)


def sharded(path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[LoRIF] = LoRIF, **options: Any) -> Iterator[LoRIF]:
    """The same rows in 1, 4 and 16 shards."""
    for shards, rows in {1: 61, 4: 16, 16: 4}.items():
        monkeypatch.setattr(index_module, "shard_rows", lambda size, rows=rows: rows)
        attributor = fitted(path / str(shards), kind, **options)
        assert len(attributor.store.manifest.shards) == shards
        yield attributor


@pytest.fixture(scope="module")
def attributor(tmp_path_factory: pytest.TempPathFactory) -> LoRIF:
    return fitted(tmp_path_factory.mktemp("index") / "index")


def gradients(model: nn.Module, rows: list[tuple[Tensor, Tensor]]) -> tuple[list[str], Tensor]:
    """Every row's gradient, by autograd in float64: parameter names, [N, all numbers]."""
    model = copy.deepcopy(model).double().eval()
    found = []
    for x, y in rows:
        for i in range(len(x)):
            loss = functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return [name for name, _ in model.named_parameters()], torch.stack(found)


def means(table: Tensor) -> np.ndarray:
    """Scores [Q, N] as those of the groups a, b, c."""
    rows = [[i for i, x in enumerate(GROUPS) if x == name] for name in "abc"]
    return torch.stack([table[which].double().mean(0) for which in rows]).numpy()


@pytest.mark.parametrize("numbers", [2**25, 1], ids=["groups together", "a group at a time"])
def test_groups_have_the_mean_of_their_rows_scores(
    attributor: LoRIF, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP_NUMBERS", numbers)
    monkeypatch.setattr(module, "STRETCH", 17)
    expected = means(attributor.score(TARGET))
    told: list[tuple[int, int]] = []
    found = aggregate(attributor, TARGET, GROUPS, how="max", k=5, progress=lambda *x: told.append(x))
    assert told[-1][0] == told[-1][1]
    np.testing.assert_allclose(found.scores, expected.max(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-4, atol=1e-5)
    assert found.best.groups == ["a", "b", "c"]
    assert found.best.rows.tolist() == np.argsort(-expected, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(found.best.scores, np.sort(-expected)[:, :5] * -1, rtol=1e-4)
    assert np.array_equal(aggregate(attributor, TARGET, GROUPS, how="mean", k=5).scores, found.mean)
    by_turns = aggregate(attributor, TARGET, GROUPS, how="round_robin", k=5).scores
    ranks = np.argsort(np.argsort(-expected, axis=1), axis=1).min(0)
    assert by_turns.tolist() == np.maximum(-ranks, -5).tolist()


def test_without_curvature_it_is_what_autograd_says(tmp_path: Path) -> None:
    (_, pool), (_, target) = gradients(network(), POOL), gradients(network(), TARGET)
    attributor = fitted(tmp_path / "index", GradDot)
    found = aggregate(attributor, TARGET, GROUPS, how="mean", k=ROWS)
    expected = means(target @ pool.T)
    np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-4, atol=1e-5)
    unit = functional.normalize(target) @ functional.normalize(pool).T
    normal = aggregate(attributor, TARGET, GROUPS, how="max", k=3, normalise=True)
    np.testing.assert_allclose(normal.scores, means(unit).max(0), rtol=1e-4, atol=1e-5)


def test_layers_can_be_weighed(tmp_path: Path) -> None:
    attributor = fitted(tmp_path / "index", GradDot)
    every = aggregate(attributor, TARGET, GROUPS, how="mean", k=1).mean
    names = [layer.name for layer in attributor.store.manifest.layers]
    alone = [
        aggregate(attributor, TARGET, GROUPS, how="mean", k=1, layer_weights={x: float(x == name) for x in names}).mean
        for name in names
    ]
    np.testing.assert_allclose(sum(alone), every, rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_allowed_are_no_groups_best(attributor: LoRIF) -> None:
    allowed = np.arange(ROWS) % 3 > 0
    found = aggregate(attributor, TARGET, GROUPS, k=ROWS, allowed=allowed)
    assert found.best.rows.shape == (3, allowed.sum()) and allowed[found.best.rows].all()


@pytest.mark.parametrize(
    "options", [{"curvature_rank": 8}, {"bits": 4, "factor_rank": 1}], ids=["few directions", "4 bits"]
)
def test_the_same_bit_for_bit_with_1_4_and_16_shards(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributors = sharded(tmp_path, monkeypatch, **options)
    found = [aggregate(one, TARGET, GROUPS, k=20, normalise=True) for one in attributors]
    for other in found[1:]:
        assert np.array_equal(other.scores, found[0].scores) and np.array_equal(other.mean, found[0].mean)
        assert np.array_equal(other.best.rows, found[0].best.rows)
        assert np.array_equal(other.best.scores, found[0].best.scores)


def test_checkpoints_are_summed_before_groups_are_compared(tmp_path: Path) -> None:
    first, second = (fitted(tmp_path / str(i), GradDot, network(i), factor_rank=c) for i, c in ((0, 99), (1, 1)))
    expected = means(0.3 * first.score(TARGET) + 2.0 * second.score(TARGET))
    found = aggregate([Checkpoint(first, 0.3), Checkpoint(second, 2.0)], TARGET, GROUPS, how="max", k=4)
    np.testing.assert_allclose(found.scores, expected.max(0), rtol=1e-4, atol=1e-5)
    other = fitted(tmp_path / "ids").store.path
    store = LoRIF(network(), Classification(), **EXACT).fit(
        POOL, tmp_path / "named", ids=[f"r{i}" for i in range(ROWS)]
    )
    with pytest.raises(DataError, match=r"other rows in 61 of 61 places"):
        aggregate([Checkpoint(LoRIF.load(other, network())), Checkpoint(store)], TARGET, GROUPS, k=4)
    with pytest.raises(DataError, match="no checkpoint"):
        aggregate([], TARGET, GROUPS, k=4)
    with pytest.raises(ValueError, match="learning rate above zero, got 0"):
        Checkpoint(store, 0)


def test_single_target_rows_say_of_some_rows_what_the_whole_table_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH", 17)
    first, second = (fitted(tmp_path / str(i), GradDot, network(i)) for i in (0, 1))
    rows = np.array([0, 16, 17, 60])
    expected = (0.3 * first.score(TARGET) + 2.0 * second.score(TARGET)).numpy()[:, rows]
    found = pair_scores([Checkpoint(first, 0.3), Checkpoint(second, 2.0)], TARGET, rows)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "GROUP_NUMBERS", 1)
    alone = pair_scores([Checkpoint(first)], TARGET, rows, normalise=True)
    (_, pool), (_, target) = gradients(network(), POOL), gradients(network(), TARGET)
    unit = functional.normalize(target) @ functional.normalize(pool).T
    np.testing.assert_allclose(alone, unit[:, rows], rtol=1e-4, atol=1e-5)
    assert pair_scores([Checkpoint(first)], TARGET, rows[:0]).shape == (TARGETS, 0)


def adam_checkpoint(model: nn.Module) -> dict[str, Any]:
    """What Lightning keeps of an Adam that has taken three steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    for x, y in POOL[:3]:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {"optimizer_states": [optimizer.state_dict()]}


@pytest.mark.parametrize("projection", ["identity", "rademacher"])
def test_adam_divides_the_targets_gradients_weight_by_weight(projection: str, tmp_path: Path) -> None:
    model = network()
    checkpoint = adam_checkpoint(model)
    moments = Moments.of(checkpoint, model)
    state = checkpoint["optimizer_states"][0]["state"]
    roots = torch.cat([(s["exp_avg_sq"].double().flatten() / (1 - 0.95**3)).sqrt() + 1e-8 for s in state.values()])
    options: dict[str, Any] = {"projection": projection, "projection_factor": 1.1}
    attributor = fitted(tmp_path / "index", model=model, **options)
    found = aggregate([Checkpoint(attributor, moments=moments)], TARGET, GROUPS, how="mean", k=4).mean
    (_, pool), (_, target) = gradients(model, POOL), gradients(model, TARGET)
    expected = means((target / roots) @ pool.T).mean(0)
    if projection == "identity":
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    else:
        assert np.corrcoef(found, expected)[0, 1] > 0.7


def test_moments_that_are_not_adams_are_refused() -> None:
    model = network()
    checkpoint = adam_checkpoint(model)
    with pytest.raises(ModelError, match="state of one Adam optimizer, got 0"):
        Moments.of({"state_dict": {}}, model)
    with pytest.raises(ModelError, match="one group of the model's 2 trained parameters"):
        Moments.of(checkpoint, nn.Linear(2, 3))
    with pytest.raises(ModelError, match=r"0.weight is \[12, 6\], its second moment \[11, 6\]"):
        Moments.of(checkpoint, nn.Sequential(nn.Embedding(12, 6), *network()[1:]))
    with pytest.raises(ModelError, match="Adam never trained 3.weight, 3.bias"):
        moments = Moments.of(checkpoint, model)
        kept = Moments({name: x for name, x in moments.roots.items() if not name.startswith("3.")})
        kept.of_layer(_layer(model, "3"))


def _layer(model: nn.Module, name: str) -> Any:
    from lorif_core.coverage import cover

    return cover(model, [name]).layers[0]


def test_what_does_not_fit_is_told_at_once_before_anything_is_computed(attributor: LoRIF) -> None:
    with pytest.raises(DataError) as caught:
        aggregate(
            attributor, TARGET, [], how="best", k=0, layer_weights={"9": 1.0, "5": -1.0}, allowed=np.ones(3, bool)
        )  # type: ignore[arg-type]
    text = str(caught.value)
    for part in (
        "one of mean, max",
        "got 0",
        "target has no rows",
        "no layers 9; it has 0, 2, 3, 5",
        "{'5': -1.0}",
        "61 rows",
    ):
        assert part in text
    with pytest.raises(DataError, match="target has 7 rows, but 2 of them"):
        aggregate(attributor, TARGET, ["a", "b"], k=1)


def test_ties_go_to_the_earlier_row() -> None:
    best = BestRows(["a"], 3, np.array([True, True, False, True, True, True]))
    best.add(range(1), 0, np.array([[1.0, 2.0, 9.0]]))
    best.add(range(1), 3, np.array([[2.0, 1.0, 2.0]]))
    assert best.take().rows.tolist() == [[1, 3, 5]]
    assert turns(Best(["a", "b"], np.array([[2, 0], [0, 1]]), np.zeros((2, 2))), 4).tolist() == [0, -1, 0, -2]
