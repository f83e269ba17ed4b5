"""Scores of every codec, storage and route against a brute force in float64 over the decoded rows; streams and caches."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lorif_core import Classification, FactorStore, LoRIF, StoreError, kernels, scoring, shards
from lorif_core.codecs import encode
from lorif_core.inverse import DualInverse, LayerInverse, PrimalInverse
from lorif_core.manifest import LayerEntry, Manifest, ShardEntry, Span
from lorif_core.query_cache import KEPT
from lorif_core.scoring import Queries, all_scores, prepared, self_influence, top_k
from lorif_core.store import write_shard
from lorif_core.threads import Workers, workers

CPU = torch.device("cpu")
BITS = (32, 16, 8, 4, 2, 1)
ROWS = 47
SHARD = 20


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SMALL = ((9, 21), (12, 4), (16, 12), (1, 5))
SIDES = (*SMALL, (29, 30))
"""In either order, odd, and longer than what is contracted at once."""


def layers(rank: int, sides: Sequence[tuple[int, int]]) -> list[LayerEntry]:
    return [LayerEntry(f"layer{i}", "Linear", 40, 70, d1, d2, rank) for i, (d1, d2) in enumerate(sides)]


def index(
    folder: Path, rank: int, bits: int, rows: int = ROWS, sides: Sequence[tuple[int, int]] = SIDES
) -> FactorStore:
    """An index of normal factors (whole gradients at rank 0) in shards of `SHARD` rows."""
    (folder / "shards").mkdir(parents=True)
    entries = layers(rank, sides)
    manifest = Manifest({"bits": bits}, "any", "any", entries, {}, 1.0, "any", complete=True)
    for number, start in enumerate(range(0, rows, SHARD)):
        n = min(SHARD, rows - start)
        tensors = {"loss": torch.zeros(n)}
        for i, layer in enumerate(entries):
            seed = 100 * number + i
            stored: Any = normal(n, layer.d1, layer.d2, seed=seed)
            if rank:
                stored = normal(n, layer.d1, rank, seed=seed), normal(n, layer.d2, rank, seed=seed + 50)
            tensors |= {f"{name}.{layer.name}": x for name, x in encode(layer, stored, bits).items()}
        manifest = write_shard(folder, manifest, tensors, [Span(n, f"{number}")], {})
    manifest.write(folder)
    return FactorStore.open(folder)


def whole(store: FactorStore) -> dict[str, Tensor]:
    """Every layer's gradients as stored [N, D], float64."""
    return {
        x.name: torch.cat([block.dense(CPU, torch.float64) for block in store.blocks(x.name, 7)])
        for x in store.manifest.layers
    }


def inverses(store: FactorStore, rank: int = 3) -> dict[str, LayerInverse]:
    found: dict[str, LayerInverse] = {}
    for i, x in enumerate(store.manifest.layers):
        vectors = torch.linalg.qr(normal(x.size, min(rank, x.size), seed=i))[0]
        found[x.name] = PrimalInverse(vectors, torch.arange(1.0, vectors.shape[1] + 1), 0.3 + i)
    return found


def queries_of(store: FactorStore, count: int) -> dict[str, Tensor]:
    return {x.name: normal(count, x.d1, x.d2, seed=i) for i, x in enumerate(store.manifest.layers)}


def brute_force(store: FactorStore, queries: dict[str, Tensor], found: dict[str, LayerInverse]) -> Tensor:
    """Sum over layers of Q (V S^2 V^T + lambda I)^-1 G^T [Q, N], solved whole in float64."""
    total = torch.zeros(len(next(iter(queries.values()))), len(store), dtype=torch.float64)
    for name, gradients in whole(store).items():
        inverse = found[name]
        assert isinstance(inverse, PrimalInverse)
        v = inverse.vectors.double()
        h = (v * inverse.values.double()) @ v.T + inverse.damping * torch.eye(len(v), dtype=torch.float64)
        total += queries[name].flatten(1).double() @ torch.linalg.solve(h, gradients.T)  # [Q, D] @ [D, N]
    return total


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [1, 3, 0])
def test_every_route_gives_the_scores_of_the_decoded_rows(
    rank: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few and many queries, preconditioned or applied to rows, kernels where there are any, blocks within shards."""
    store = index(tmp_path, rank, bits)
    found = inverses(store)
    monkeypatch.setattr(scoring, "CACHE_NUMBERS", 300)
    monkeypatch.setattr(scoring, "LEAST_ROWS", 3)
    for count in (1, 3, 30, ROWS + 1):
        gradients = queries_of(store, count)
        expected = brute_force(store, gradients, found)
        queries = prepared(gradients, found, len(store))
        assert queries.preconditioned == (count <= len(store))
        for least in (0, 2**60) if kernels.available() else (2**60,):
            monkeypatch.setattr(scoring, "KERNEL_NUMBERS", least)
            close(all_scores(store, queries, found, CPU, lambda done: None), expected)
            for largest in (True, False):
                best = top_k(store, queries, found, 5, largest, CPU, lambda done: None)
                close(best.scores, expected.topk(5, largest=largest).values)
                close(expected.gather(1, best.indices).float(), expected.topk(5, largest=largest).values)


def test_self_influence_is_the_quadratic_form(tmp_path: Path) -> None:
    store = index(tmp_path, 1, 16)
    found = inverses(store)
    gradients = {
        name: g.float().view(len(store), x.d1, x.d2)
        for (name, g), x in zip(whole(store).items(), store.manifest.layers, strict=True)
    }
    close(self_influence(store, found, CPU, lambda done: None), brute_force(store, gradients, found).diagonal())


def test_top_k_never_holds_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part it merges is larger than `BLOCK_NUMBERS`, however many rows there are."""
    store = index(tmp_path, 1, 16, rows=300)
    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", 100)
    sizes, real = [], scoring.stream_scores

    def watched(*args: Any) -> Iterator[tuple[int, Tensor]]:
        for start, part in real(*args):
            sizes.append(part.numel())
            yield start, part

    def stream(*args: Any) -> Any:
        return watched(*args)

    monkeypatch.setattr(scoring, "stream_scores", stream)
    found = inverses(store)
    top_k(store, prepared(queries_of(store, 10), found, len(store)), found, 2, True, CPU, lambda done: None)
    assert sum(sizes) == 10 * 300 and max(sizes) <= 100


def test_results_come_in_order_whichever_worker_is_first() -> None:
    gate = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            gate.wait(5)
        if item == 2:
            gate.set()
        return item

    with workers(CPU) as pool:
        assert list(Workers(pool.pool, max(pool.count, 2)).map(lambda item: item, range(9))) == list(range(9))
    torch.set_num_threads(3)
    try:
        with workers(CPU) as pool:
            assert list(pool.map(work, range(9))) == list(range(9))
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("damage", ["gone", "short", "header"])
def test_a_shard_lost_after_opening_is_named_where_it_would_have_come(damage: str, tmp_path: Path) -> None:
    """Errors inside the reader thread reach the caller, after the shards before it."""
    store = index(tmp_path, 1, 16)
    lost = store.path / store.manifest.shards[1].file
    data = lost.read_bytes()
    lost.unlink()
    if damage != "gone":
        lost.write_bytes(data[:-1] if damage == "short" else b"\xff" * 8 + data[8:])
    seen = []
    with pytest.raises(StoreError, match=lost.name):
        for shard in shards.stream(store):
            seen.append(shard.entry.start)
    assert seen == [0]
    found = inverses(store)
    with pytest.raises(StoreError, match=lost.name):
        top_k(store, Queries(queries_of(store, 1), True), found, 2, True, CPU, lambda done: None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lorif")]


def test_the_next_shards_are_opened_before_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = index(tmp_path, 1, 16, rows=5 * SHARD)
    opened, real = [], shards.open_shard
    all_open = threading.Event()

    def watched(folder: Path, entry: ShardEntry, trust: bool) -> Any:
        opened.append(entry.start)
        if len(opened) == 1 + shards.AHEAD:
            all_open.set()
        return real(folder, entry, trust)

    monkeypatch.setattr(shards, "open_shard", watched)
    stream = shards.stream(store)
    assert next(stream).entry.start == 0
    assert all_open.wait(5)
    assert [0, *(shard.entry.start for shard in stream)] == [0, 20, 40, 60, 80] == opened


def test_dual_layers_are_scored_from_products(tmp_path: Path) -> None:
    store = index(tmp_path, 1, 16)
    found: dict[str, LayerInverse] = inverses(store)
    name, gradients = "layer4", whole(store)["layer4"]  # D = 870 > N
    kernel = gradients @ gradients.T
    values, directions = torch.linalg.eigh(kernel)
    weights = directions / values.sqrt()
    found[name] = DualInverse(weights, kernel @ weights, values, torch.zeros(len(store)), 0.7)
    queries = queries_of(store, 4)
    others = dict(found) | {name: PrimalInverse((gradients.T @ weights).float(), values.float(), 0.7)}
    # outside the rows' span a query meets nothing: both forms agree on the rows
    expected = brute_force(store, queries, others)
    scores = all_scores(store, prepared(queries, found, len(store)), found, CPU, lambda done: None)
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def loader(seed: int, count: int = 12) -> DataLoader:
    x = normal(count, 8, seed=seed)
    return DataLoader([(row, i % 3) for i, row in enumerate(x)], batch_size=5)


class Counted(LoRIF):
    """Counts the batches whose gradients are taken."""

    batches = 0

    def gradients(self, loader: Any) -> Any:
        for found in super().gradients(loader):
            self.batches += 1
            yield found


def test_the_same_queries_are_preconditioned_once(tmp_path: Path) -> None:
    attributor = Counted(network(), Classification()).fit(loader(0, 203), tmp_path)
    first = attributor.score(loader(1))
    assert attributor.batches == 3
    assert torch.equal(attributor.score(loader(1)), first)
    best = attributor.top_k(loader(1), 2)
    assert attributor.batches == 3 and torch.equal(best.scores, first.topk(2).values)
    again = Counted.load(tmp_path, network())
    assert torch.equal(again.score(loader(1)), first) and again.batches == 0


def test_other_queries_curvature_or_weights_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    Counted(network(), Classification()).fit(loader(0, 203), tmp_path).score(loader(1))
    trained = network()
    attributor = Counted.load(tmp_path, trained)
    assert not torch.equal(attributor.score(loader(2)), attributor.score(loader(1)))
    assert attributor.batches == 3  # those of the other queries
    for changed in ({"damping": 0.1}, {"curvature_rank": 2}, {"damping_rule": "trace"}):
        other = Counted.load(tmp_path, network(), **changed)
        other.score(loader(1))
        assert other.batches == 3, changed
    with torch.no_grad():
        trained[0].weight.add_(0.1)
    attributor.score(loader(1))
    assert attributor.batches == 6


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another"])
def test_a_damaged_cache_file_is_made_again(damage: str, tmp_path: Path) -> None:
    attributor = Counted(network(), Classification()).fit(loader(0, 203), tmp_path)
    expected = attributor.score(loader(1))
    (file,) = (tmp_path / "queries").iterdir()
    data = file.read_bytes()
    attributor.score(loader(2))
    (second,) = set((tmp_path / "queries").iterdir()) - {file}
    wrong = {"flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "cut": data[:-5], "empty": b""}
    file.write_bytes(second.read_bytes() if damage == "another" else wrong[damage])
    attributor.batches = 0
    assert torch.equal(attributor.score(loader(1)), expected) and attributor.batches == 3
    assert file.read_bytes() == data


def test_only_the_newest_queries_are_kept(tmp_path: Path) -> None:
    attributor = LoRIF(network(), Classification()).fit(loader(0, 203), tmp_path)
    for seed in range(KEPT + 3):
        attributor.score(loader(seed + 1))
    assert len(list((tmp_path / "queries").iterdir())) == KEPT


def test_workers_of_several_callers_leave_the_threads_as_they_were() -> None:
    """The second begins before the first ends, and ends after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = workers(CPU), workers(CPU)
        assert first.__enter__().count == second.__enter__().count == 2
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_queries_that_a_digest_of_tensors_does_not_tell_apart_are_not_kept(tmp_path: Path) -> None:
    class Tempered(nn.Linear):
        def forward(self, input: Tensor, temperature: float = 1.0) -> Tensor:
            return super().forward(input) * temperature

    def batch(temperature: float) -> dict[str, Any]:
        return {"input": normal(6, 5), "labels": torch.arange(6) % 3, "temperature": temperature}

    one = LoRIF(Tempered(5, 3), Classification()).fit([batch(1.0)], tmp_path)
    assert not torch.allclose(one.score([batch(1.0)]), one.score([batch(3.0)]))
    objective = Classification()
    objective.measure = lambda model, batch: 7 * objective.loss(model, batch)  # type: ignore[method-assign]
    other = LoRIF.load(tmp_path, one.model)
    plain = {name: x for name, x in batch(1.0).items() if name != "temperature"}
    expected = 7 * other.score([plain])
    other.objective = objective
    torch.testing.assert_close(other.score([plain]), expected)
