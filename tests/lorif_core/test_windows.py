"""What is made of an index does not depend on its shards, bit for bit."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorif_core import FactorStore, kernels, passes, scoring, shards, windows
from lorif_core.codecs import encode
from lorif_core.curvature import fit_curvature
from lorif_core.inverse import PrimalInverse
from lorif_core.manifest import LayerEntry, Manifest, Span
from lorif_core.norms import gradient_norms
from lorif_core.options import CurvatureOptions
from lorif_core.scoring import Queries, stream_scores
from lorif_core.store import write_shard

CPU = torch.device("cpu")
ROWS = 331
SHARDS = {1: ROWS, 4: 83, 16: 21}
"""Rows of a shard for so many."""


def index(folder: Path, rank: int, bits: int, shard: int) -> FactorStore:
    """The same rows whatever the shards."""
    generator = torch.Generator().manual_seed(0)
    entries = [LayerEntry(f"layer{i}", "Linear", 40, 70, *s, rank) for i, s in enumerate([(9, 21), (12, 4)])]
    tensors: dict[str, Tensor] = {"loss": torch.zeros(ROWS)}
    for layer in entries:
        sides = [torch.randn(ROWS, d, max(rank, 1), generator=generator) for d in (layer.d1, layer.d2)]
        stored = (sides[0], sides[1]) if rank else sides[0] @ sides[1].mT
        tensors |= {f"{name}.{layer.name}": x for name, x in encode(layer, stored, bits).items()}
    (folder / "shards").mkdir(parents=True)
    manifest = Manifest({"bits": bits}, "any", "any", entries, {}, 1.0, "any", complete=True)
    for start in range(0, ROWS, shard):
        rows = min(shard, ROWS - start)
        part = {name: x[start : start + rows].clone() for name, x in tensors.items()}
        manifest = write_shard(folder, manifest, part, [Span(rows, f"{start}")], {})
    manifest.write(folder)
    return FactorStore.open(folder)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that end inside shards, of which more are in one than may be open."""
    for module, rows in ((windows, windows.WINDOWS * 50), (passes, 120)):
        monkeypatch.setattr(module, "shard_rows", lambda size, rows=rows: rows)
    monkeypatch.setattr(windows, "OPEN", 2)


@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize(("rank", "bits"), [(1, 32), (1, 16), (2, 16), (1, 4), (0, 8)])
def test_scores(rank: int, bits: int, queries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    asked: dict[str, Tensor] = {}
    for count, rows in SHARDS.items():
        store = index(tmp_path / str(count), rank, bits, rows)
        assert len(store.manifest.shards) == count
        asked = asked or {x.name: torch.randn(queries, x.d1, x.d2, generator=generator) for x in store.manifest.layers}
        inverses = {x.name: PrimalInverse(torch.zeros(x.size, 0), torch.zeros(0), 1.0) for x in store.manifest.layers}
        for compiled in (True, False):
            monkeypatch.setattr(scoring, "KERNEL_NUMBERS", 0 if compiled and kernels.available() else 10**9)
            parts = stream_scores(store, store.manifest.layers, Queries(asked, True), inverses, torch.zeros(0))
            found[compiled].append(torch.cat([part for _, part in parts], 1))
        expected = sum(
            asked[x.name].double().flatten(1)
            @ torch.cat([b.dense(CPU, torch.float64) for b in store.blocks(x.name, 7)]).T
            for x in store.manifest.layers
        )
        torch.testing.assert_close(found[False][-1].double(), expected, rtol=1e-4, atol=1e-4)
    for same in found.values():
        assert all(torch.equal(other, same[0]) for other in same[1:]), [
            (o != same[0]).nonzero()[:, 1].tolist() for o in same
        ]


@pytest.mark.parametrize("compiled", [True, False])
def test_many_small_shards_are_opened_one_by_one(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = index(tmp_path, 1, 16, 1)
    entry, real = store.manifest.layers[0], windows.open_shard
    opened: weakref.WeakSet[shards.Shard] = weakref.WeakSet()
    most = 0

    def watched(*args: Any) -> shards.Shard:
        nonlocal most
        opened.add(shard := real(*args))
        most = max(most, len(opened))
        return shard

    monkeypatch.setattr(windows, "open_shard", watched)
    window = windows.Window(store, 0, ROWS, tuple(store.manifest.shards))
    queries = torch.ones(2, entry.d1, entry.d2)
    if compiled and kernels.available():
        part: Any = scoring._Compiled(kernels.prepare([entry], 16, {entry.name: queries}))
    else:
        part = scoring._Layer(entry, 16, queries, None)
    part.add_scores(window, torch.zeros(2, ROWS))
    assert most == 2  # one is used, the next one opened


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_curvature_and_norms(rank: int, tmp_path: Path) -> None:
    curvatures, norms = [], []
    for count, rows in SHARDS.items():
        store = index(tmp_path / str(count), rank, 32, rows)
        curvatures.append(fit_curvature(store, CurvatureOptions(8), CPU, lambda *told: None))
        norms.append(gradient_norms(store))
    squares = sum(
        torch.cat([b.dense(CPU, torch.float64) for b in store.blocks(x.name, 7)]).square().sum(1)
        for x in store.manifest.layers
    )
    torch.testing.assert_close(norms[0].square(), squares)
    assert all(torch.equal(other, norms[0]) for other in norms[1:])
    for other in curvatures[1:]:
        for name, inverse in curvatures[0].items():
            assert torch.equal(other[name].vectors, inverse.vectors) and torch.equal(other[name].values, inverse.values)
            assert other[name].damping == inverse.damping
