"""Each strategy against a brute force or a planted answer, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
import pytest

from curation.errors import CurationError, DataError
from curation.selection import greedy as selection_greedy
from curation.selection.budget import Budget
from curation.selection.greedy import greedy, objective, sampled_greedy
from curation.selection.pool import Best, Pool
from curation.selection.sampling import inclusion, systematic, weighted_order
from curation.selection.similarity import most_similar, neighbour_distance, unit
from curation.selection.strategies import (
    STRATEGIES,
    Density,
    FacilityLocation,
    Importance,
    Quotas,
    RoundRobin,
    TopK,
    build_strategy,
)
from curation.selection.strategies.density import pseudo_density
from tests.curation.selection.pools import pool_of


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def full_pool(rows: int = 120) -> Pool:
    """A pool that every strategy can choose from."""
    scores = normal(rows, seed=1)
    order = np.argsort(-scores, kind="stable")[None, :]
    return pool_of(
        scores,
        best=Best(["target"], order, scores[order]),
        columns=pl.DataFrame({"source": ["a", "b", "c"] * (rows // 3)}),
        vectors=normal(rows, 5, seed=2),
        lengths=np.random.default_rng(3).integers(1, 9, rows),
        allowed=np.arange(rows) % 5 > 0,
    )


def options_of(name: str) -> dict[str, Any]:
    return {"column": "source"} if name == "quotas" else {}


@pytest.mark.parametrize(
    "budget", [Budget(rows=24), Budget(tokens=100), Budget(share=0.2)], ids=["rows", "tokens", "share"]
)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_keeps_the_budget_and_is_reproducible(name: str, budget: Budget) -> None:
    pool, strategy = full_pool(), build_strategy(name, options_of(name))
    found, again = (strategy.select(pool, budget, seed=7) for _ in range(2))
    assert found.rows.tolist() == again.rows.tolist() and found.weights.tolist() == again.weights.tolist()
    assert len(set(found.rows.tolist())) == len(found) == len(found.reasons) == len(found.scores)
    assert pool.allowed[found.rows].all() and all(found.reasons)
    assert found.weights.mean() == pytest.approx(1) and (found.weights > 0).all()
    if budget.tokens is None:
        assert len(found) == 24
    else:
        assert 80 < pool.lengths[found.rows].sum() <= 100 or name == "importance"


@pytest.mark.parametrize("name", ["density", "importance"])
def test_what_is_drawn_depends_on_the_seed(name: str) -> None:
    strategy = build_strategy(name, {})
    one, other = (strategy.select(full_pool(), Budget(rows=24), seed) for seed in (0, 1))
    assert set(one.rows.tolist()) != set(other.rows.tolist())


@pytest.mark.parametrize("name", [x for x in STRATEGIES if STRATEGIES[x].needs])
def test_what_a_strategy_needs_is_told(name: str) -> None:
    with pytest.raises(DataError, match=f"{type(build_strategy(name, options_of(name))).__name__} needs"):
        build_strategy(name, options_of(name)).select(pool_of([1, 2, 3]), Budget(rows=2))


def test_strategies_are_built_by_name() -> None:
    assert build_strategy("top_k", {}) == TopK()
    with pytest.raises(CurationError, match=r"expected one of top_k, .*; got 'best'"):
        build_strategy("best", {})
    with pytest.raises(CurationError, match="top_k: unknown options k; it takes none"):
        build_strategy("top_k", {"k": 3})
    with pytest.raises(CurationError, match="quotas: missing column; it takes column, shares"):
        build_strategy("quotas", {})
    for name, options in [
        ("density", {"towards": "x", "factor": 0.5}),
        ("importance", {"temperature": 0}),
        ("facility_location", {"quality": 2}),
        ("quotas", {"column": "a", "shares": {"x": 0.4}}),
    ]:
        with pytest.raises(CurationError, match=rf"strategy {name}: \w+: expected"):
            build_strategy(name, options)
    with pytest.raises(CurationError, match=r"strategy density: .* not supported between instances of 'str'"):
        build_strategy("density", {"neighbours": "many"})


def test_top_k_takes_the_highest_that_are_allowed_ties_in_pool_order() -> None:
    pool = pool_of([5, 1, 7, 5, 9], allowed=np.array([True, True, True, True, False]))
    found = TopK().select(pool, Budget(rows=3))
    assert found.rows.tolist() == [2, 0, 3]
    assert found.scores.tolist() == [7, 5, 5] and found.weights.tolist() == [1, 1, 1]
    assert found.reasons[0] == "score 7, number 1 of 5"


def test_groups_take_turns() -> None:
    best = Best(["small", "large"], np.array([[4, 1, 2], [1, 0, 3]]), np.array([[0.2, 0.1, 0.0], [9.0, 8.0, 7.0]]))
    pool = pool_of(np.zeros(5), best=best, allowed=np.array([True, True, True, False, True]))
    found = RoundRobin().select(pool, Budget(rows=4))
    assert found.rows.tolist() == [4, 1, 2, 0]
    assert found.scores.tolist() == pytest.approx([0.2, 9, 0, 8])
    assert found.reasons[1] == "taken for the target group 'large', score 9"
    short = pool_of(np.zeros(5), best=Best(["one"], np.array([[0, 1]]), np.zeros((1, 2))))
    with pytest.raises(DataError, match=r"1 target groups' 2 strongest rows each hold 2 .* the budget of 4 rows"):
        RoundRobin().select(short, Budget(rows=4))
    with pytest.raises(DataError, match=r"the budget of 4 tokens"):
        RoundRobin().select(short, Budget(tokens=4))


def test_groups_take_turns_as_often_as_they_have_target_rows() -> None:
    rows = np.stack([np.arange(40), np.arange(60, 100), np.arange(40, 80)])  # the last two share twenty rows
    best = Best(["a", "b", "c"], rows, np.zeros((3, 40)), sizes=np.array([6, 3, 1]))
    by_size = RoundRobin(turns="size")
    taken = by_size.select(pool_of(np.zeros(100), best=best), Budget(rows=60))
    groups = [reason.split("'")[1] for reason in taken.reasons]
    assert len(set(taken.rows.tolist())) == 60
    for turns in range(1, 61):  # never more than one turn from its share
        shares = [groups[:turns].count(name) / turns for name in "abc"]
        assert np.abs(turns * (np.array(shares) - [0.6, 0.3, 0.1])).max() < 1
    # A group that has no rows left is out: the others share alone.
    rows = np.where(np.arange(40) < [[7], [40], [40]], np.arange(120).reshape(3, 40), 0)
    uneven = Best(["a", "b", "c"], rows, np.zeros((3, 40)), sizes=np.array([70, 20, 10]))
    taken = by_size.select(pool_of(np.zeros(120), best=uneven), Budget(rows=40))
    groups = [reason.split("'")[1] for reason in taken.reasons]
    assert groups[:10].count("a") == groups.count("a") == 7
    for turns in range(1, 31):
        assert abs(groups[10 : 10 + turns].count("b") - 2 / 3 * turns) < 1
    # Equal sizes: the turns of `equal`.
    even = replace(best, sizes=np.array([2, 2, 2]))
    pool = pool_of(np.zeros(100), best=even)
    assert (
        by_size.select(pool, Budget(rows=100)).rows.tolist()
        == RoundRobin().select(pool, Budget(rows=100)).rows.tolist()
    )
    with pytest.raises(DataError, match=r"turns: size needs the target rows of each group"):
        by_size.select(pool_of(np.zeros(100), best=replace(best, sizes=None)), Budget(rows=9))
    with pytest.raises(CurationError, match=r"turns: expected equal or size, got 'often'"):
        build_strategy("round_robin", {"turns": "often"})


def plain_greedy(vectors: np.ndarray, bonus: np.ndarray, coverage: float, count: int) -> list[int]:
    """Every gain of every row every time, in float64."""
    similar = (1 + unit(vectors).astype(np.float64) @ unit(vectors).T.astype(np.float64)) / 2
    reached, taken = np.zeros(len(vectors)), []
    for _ in range(count):
        gains = coverage * np.maximum(similar - reached, 0).mean(1) + bonus
        gains[taken] = -np.inf
        taken.append(int(gains.argmax()))
        reached = np.maximum(reached, similar[taken[-1]])
    return taken


@pytest.mark.parametrize("quality", [0.0, 0.3])
def test_facility_location_is_the_plain_greedy(quality: float) -> None:
    pool = pool_of(normal(300, seed=5), vectors=normal(300, 6, seed=4))
    found = FacilityLocation(quality=quality).select(pool, Budget(rows=30))
    u = (pool.scores - pool.scores.min()) / (pool.scores.max() - pool.scores.min())
    assert found.rows.tolist() == plain_greedy(pool.vectors, quality * u / 30, 1 - quality, 30)
    assert (np.diff(found.scores) <= 1e-9).all()


@pytest.mark.parametrize("count", [20, 200])
def test_in_parts_it_reaches_99_hundredths_of_the_exact_greedy(count: int) -> None:
    centres = normal(60, 16, seed=1)
    vectors = centres[np.random.default_rng(2).integers(0, 60, 2000)] + 0.6 * normal(2000, 16, seed=3)
    pool, every, none = pool_of(np.zeros(2000), vectors=vectors), unit(vectors), np.zeros(count)
    exact, parts = (
        objective(every[FacilityLocation(exact=n).select(pool, Budget(rows=count)).rows], every, 1.0, none)
        for n in (2000, 400)
    )
    assert parts >= 0.99 * exact


def test_sampled_greedy_says_the_gains_and_comes_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, bonus = unit(normal(400, 8, seed=1)), np.linspace(0, 0.001, 400)
    exact = [row for row, _ in islice(greedy(vectors, vectors, 0.7, bonus), 40)]
    found = list(islice(sampled_greedy(vectors, vectors, 0.7, bonus, 40, np.random.default_rng(3)), 40))
    rows = [row for row, _ in found]
    reached = [objective(vectors[rows[:n]], vectors, 0.7, bonus[rows[:n]]) for n in range(1, 41)]
    np.testing.assert_allclose([gain for _, gain in found], np.diff([0, *reached]), atol=1e-6)
    assert reached[-1] >= 0.99 * objective(vectors[exact], vectors, 0.7, bonus[exact])
    monkeypatch.setattr(selection_greedy, "BLOCK_NUMBERS", 400 * 20)  # the gains of a step in slices
    again = sampled_greedy(vectors, vectors, 0.7, bonus, 40, np.random.default_rng(3))
    assert [row for row, _ in islice(again, 40)] == rows and len(set(rows)) == 40
    assert sorted(
        row for row, _ in sampled_greedy(vectors[:9], vectors, 1.0, bonus[:9], 3, np.random.default_rng(0))
    ) == [*range(9)]


def test_density_is_of_distances_to_neighbours() -> None:
    vectors = normal(150, 3)
    distances = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=2)
    v = np.sort(distances, axis=1)[:, 1:8].mean(1)
    np.testing.assert_allclose(neighbour_distance(vectors, 7), v, rtol=1e-6)
    density = pseudo_density(vectors, 7, 10**6, np.random.default_rng(0))
    np.testing.assert_allclose(density, (1 / v) / (1 / v).mean(), rtol=1e-6)
    assert density.mean() == pytest.approx(1)
    few = np.arange(0, 150, 2)
    expected = [np.sort(np.delete(distances[i, few], np.flatnonzero(few == i)))[:7].mean() for i in range(150)]
    np.testing.assert_allclose(neighbour_distance(vectors, 7, few), expected, rtol=1e-6)


def test_density_draws_rare_rows_for_diversity_and_typical_ones_for_fidelity() -> None:
    vectors = np.concatenate([0.05 * normal(80, 4), 5 + 3 * normal(40, 4, seed=9)])
    pool = pool_of(np.arange(120.0), vectors=vectors)
    rare = {
        x: (Density(towards=x, factor=50.0).select(pool, Budget(rows=40)).rows >= 80).sum()
        for x in ("diversity", "fidelity")
    }
    assert rare["diversity"] > 20 and rare["fidelity"] < 5
    best = Density(among=0.5).select(pool, Budget(rows=50)).rows
    assert (best >= 60).all()
    with pytest.raises(DataError, match=r"among=0.1 leaves 12 rows to draw from, 28 rows short of the budget"):
        Density(among=0.1).select(pool, Budget(rows=40))
    same = np.concatenate([np.zeros((50, 4)), normal(50, 4)])
    assert np.isfinite(pseudo_density(same, 5, 100, np.random.default_rng(0))).all()


def test_quotas_give_each_value_its_share() -> None:
    source = ["a"] * 6 + ["b"] * 3 + [None]
    pool = pool_of(np.arange(10.0), columns=pl.DataFrame({"source": source}), lengths=np.full(10, 2))
    as_pool = Quotas("source").select(pool, Budget(rows=5)).rows.tolist()
    assert as_pool == [9, 8, 5, 4, 3] or sorted(as_pool) == [3, 4, 5, 7, 8]
    assert Quotas("source", "equal").select(pool, Budget(rows=3)).rows.tolist() == [9, 8, 5]
    assert Quotas("source", {"a": 0.5, "b": 0.5}).select(pool, Budget(tokens=8)).rows.tolist() == [8, 7, 5, 4]
    with pytest.raises(DataError, match=r"'b' is to have 4 rows, but 3 are left"):
        Quotas("source", {"a": 0.5, "b": 0.5}).select(pool, Budget(rows=8))
    with pytest.raises(DataError, match=r"no row is left with 'z'; it has '\(nothing\)', 'a', 'b'"):
        Quotas("source", {"a": 0.5, "z": 0.5}).select(pool, Budget(rows=8))
    with pytest.raises(DataError, match=r"no column 'sorce' \(did you mean 'source'\?\)"):
        Quotas("sorce").select(pool, Budget(rows=8))


def test_what_falls_short_whatever_the_scores_is_told_before_there_are_any() -> None:
    pool = full_pool()  # 32 rows of each source are left
    for strategy, budget, said in (
        (Quotas("source", {"a": 0.5, "z": 0.5}), Budget(rows=9), "no row is left with 'z'; it has 'a', 'b', 'c'"),
        (Quotas("source", {"a": 1.0}), Budget(rows=50), "'a' is to have 50 rows, but 32 are left to choose from"),
        (Quotas("source", {"a": 0.98, "b": 0.02}), Budget(tokens=50), "'b' is to have 1 tokens, its shortest row 2"),
        (Density(among=0.1), Budget(rows=20), "among=0.1 leaves 9 rows to draw from, 11 rows short of the budget"),
    ):
        long = replace(pool, lengths=pool.lengths + 1)
        (problem,) = strategy.shortfalls(long, budget)
        assert said in problem
        with pytest.raises(DataError, match=re.escape(said)):
            strategy.select(long, budget)
    assert TopK().shortfalls(pool, Budget(rows=9)) == Quotas("source").shortfalls(pool, Budget(rows=9)) == []


def test_rows_are_drawn_with_their_probabilities() -> None:
    weights = np.array([100.0, 1, 2, 3, 4, 0.5])
    p = inclusion(weights, 3)
    assert p.sum() == pytest.approx(3) and p[0] == 1 and p[1:] == pytest.approx(2 * weights[1:] / weights[1:].sum())
    assert inclusion(weights, 6).tolist() == [1] * 6
    generator = np.random.default_rng(0)
    drawn = np.zeros(6)
    for _ in range(4000):
        rows = systematic(p, 3, generator)
        assert len(set(rows.tolist())) == 3
        drawn[rows] += 1
    np.testing.assert_allclose(drawn / 4000, p, atol=0.03)
    firsts = np.bincount([weighted_order(weights, generator)[0] for _ in range(2000)], minlength=6) / 2000
    np.testing.assert_allclose(firsts, weights / weights.sum(), atol=0.03)


def test_importance_weights_make_the_sum_that_of_the_whole_pool() -> None:
    scores, values = normal(80, seed=1), normal(80, seed=2)
    z = (scores - scores.max()) / scores.std()
    p = np.exp(z) / np.exp(z).sum()
    pool = pool_of(scores)
    sums = []
    for seed in range(400):
        found = Importance(uniform=0.5).select(pool, Budget(rows=20), seed)
        sums.append((found.weights * values[found.rows]).mean())
    assert np.mean(sums) == pytest.approx(p @ values, abs=4 * np.std(sums) / 400**0.5 + 0.01)
    assert found.weights.max() / found.weights.min() > 2


def test_most_similar_rows() -> None:
    a, b = normal(30, 4), np.concatenate([normal(8, 4, seed=1), np.zeros((1, 4))])
    table = unit(a) @ unit(b).T
    places, cosines = most_similar(a, b)
    assert places.tolist() == table.argmax(1).tolist()
    np.testing.assert_allclose(cosines, table.max(1), rtol=1e-6)
