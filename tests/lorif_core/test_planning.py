"""A budget of bytes an example: kept, explained, and the same when an index goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lorif_core import LoRIF, StoreError
from lorif_core.options import IndexOptions
from lorif_core.planning import Shape, disk_bytes, entries, header_bytes, plan
from lorif_core.projections import even_sizes
from lorif_core.store import shard_rows
from tests.lorif_core.against_oracle import OBJECTIVES, StoppingLoader, loader
from tests.oracle import zoo

NARROW = [
    Shape(f"{block}.{name}", "Linear", rows, columns, vectors=False)
    for block in range(2)
    for name, rows, columns in (("qkv", 65, 192), ("proj", 65, 64), ("up", 65, 256), ("down", 257, 64))
]
WIDE = [Shape(f"{i}", "Linear", 4097, 4096, vectors=False) for i in range(32)]
VECTORS = [Shape("fc1", "Linear", 65, 256, vectors=True), Shape("fc2", "Linear", 257, 10, vectors=True)]


@pytest.mark.parametrize("shapes", [NARROW, WIDE, VECTORS], ids=["narrow", "wide", "vectors"])
@pytest.mark.parametrize("budget", [250, 850, 5000, 100_000])
def test_what_is_planned_fits_and_wastes_little(shapes: list[Shape], budget: int) -> None:
    found = plan(shapes, IndexOptions(), budget)
    assert found.bytes == disk_bytes(entries(shapes, found.options), found.options.bits) <= budget
    everything = found.options.projection_factor == 1
    assert everything or found.bytes > 0.9 * budget


@pytest.mark.parametrize("rows, columns", [(65, 192), (257, 64), (769, 50_257), (17, 18), (4097, 4096)])
@pytest.mark.parametrize("factor", [1, 1.3, 2, 4, 8.55, 20, 300, 1e5])
def test_even_sides_differ_by_no_more_than_they_must(rows: int, columns: int, factor: float) -> None:
    d1, d2 = even_sizes(rows, columns, factor)
    numbers, narrow = rows * columns / factor**2, min(rows, columns)
    assert 1 <= d1 <= rows and 1 <= d2 <= columns
    assert d1 * d2 <= max(1, numbers) < (min(d1, d2) + 1) ** 2 or min(d1, d2) == narrow
    assert abs(d1 - d2) <= 2 or min(d1, d2) == narrow
    assert even_sizes(columns, rows, factor) == (d2, d1)
    assert d1 * d2 >= math.prod(even_sizes(rows, columns, 1.01 * factor))


def test_even_sides_of_a_whole_and_of_a_small_layer() -> None:
    assert even_sizes(65, 192, 1) == (65, 192)
    assert even_sizes(65, 256, 2) == (64, 65)
    assert even_sizes(40, 1000, 2) == (40, 250)  # the narrow side is whole, the rest goes to the wide one
    assert even_sizes(257, 10, 4) == (64, 10)


def test_only_planned_sides_are_even_and_those_of_ids_never() -> None:
    table = Shape("table", "Embedding", 1000, 64, vectors=False, ids=True)
    found = {
        x.name: (x.d1, x.d2) for x in entries([NARROW[0], table], plan([NARROW[0], table], IndexOptions(), 500).options)
    }
    assert abs(found["0.qkv"][0] - found["0.qkv"][1]) <= 2 and found["table"][0] > 10 * found["table"][1]
    uniform = entries(NARROW[:1], IndexOptions(projection_factor=8))[0]
    assert (uniform.d1, uniform.d2) == (8, 24)


def test_an_index_planned_with_equal_factors_is_read_as_it_is(tmp_path: Path) -> None:
    """Earlier releases planned so; random projections are not kept, but made again of the sides the manifest has."""
    case = zoo.build("wide_mlp")
    options = {"projection": "rademacher", "projection_factor": 3.0}
    fitted = LoRIF(case.model, OBJECTIVES[case.objective](), **options).fit(loader(case.train), tmp_path)
    scores, manifest = fitted.score(loader(case.query)), fitted.store.manifest
    assert any((x.d1, x.d2) not in ((x.rows, x.columns), even_sizes(x.rows, x.columns, 3.0)) for x in manifest.layers)
    manifest.with_(options=manifest.options | {"bytes_per_example": 400}).write(tmp_path)
    assert torch.equal(LoRIF.load(tmp_path, case.model).score(loader(case.query)), scores)


def test_more_bytes_are_never_worse() -> None:
    qualities = [plan(NARROW, IndexOptions(), budget).quality for budget in (60, 120, 250, 500, 1000, 4000, 50_000)]
    assert qualities == sorted(qualities)


def test_narrow_sequences_are_kept_whole_wide_ones_and_vectors_as_factors() -> None:
    assert plan(NARROW, IndexOptions(), 850).options.storage == "dense"
    assert plan(WIDE, IndexOptions(), 5000).options.storage == "factors"
    assert plan(VECTORS, IndexOptions(), 300).options.storage == "factors"
    assert plan(VECTORS, IndexOptions(), 50).options.bits == 4


def test_a_budget_too_small_says_what_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"bytes_per_example: expected at least \d+ for the 8 layers of this model, got 9"
    ):
        plan(NARROW, IndexOptions(), 9)


def test_the_plan_is_recorded_and_an_interrupted_index_goes_on_by_it(tmp_path: Path) -> None:
    case = zoo.build("gpt")
    options = {"bytes_per_example": 400, "layers": ["blocks.*", "head"]}

    def attributor() -> LoRIF:
        return LoRIF(case.model, OBJECTIVES[case.objective](), **options)

    batches = list(loader(case.train, 2))
    with pytest.raises(KeyboardInterrupt):
        attributor().fit(StoppingLoader(batches, 3, KeyboardInterrupt, reading=3), tmp_path / "index")
    manifest = attributor().fit(batches, tmp_path / "index").store.manifest
    assert manifest.options["bytes_per_example"] == 400 and "of 400 bytes an example" in manifest.plan
    assert attributor().fit(batches, tmp_path / "index").store.bytes_per_example <= 400
    assert LoRIF.load(tmp_path / "index", case.model).options.bits == manifest.options["bits"]
    with pytest.raises(StoreError, match="bytes_per_example: 400 -> 300"):
        LoRIF(case.model, OBJECTIVES[case.objective](), **options | {"bytes_per_example": 300}).fit(
            batches, tmp_path / "index"
        )


def test_a_budget_and_what_it_plans_are_not_both_given() -> None:
    case = zoo.build("mlp")
    with pytest.raises(ValueError, match="bytes_per_example plans .*: leave storage and bits out"):
        LoRIF(case.model, OBJECTIVES[case.objective](), bytes_per_example=300, storage="dense", bits=1)


@pytest.mark.parametrize("options", [{}, {"storage": "dense"}, {"bits": 1}, {"storage": "dense", "bits": 4}], ids=str)
def test_a_budget_covers_the_headers_of_shards(options: dict[str, Any], tmp_path: Path) -> None:
    case = zoo.build("gpt")
    store = LoRIF(case.model, OBJECTIVES[case.objective](), **options).fit(loader(case.train), tmp_path).store
    layers, bits = store.manifest.layers, store.manifest.bits
    (shard,) = store.manifest.shards
    header = shard.bytes - shard.rows * store.bytes_per_example
    assert header <= header_bytes(layers, bits) < 2 * header
    full = shard_rows(store.bytes_per_example)
    assert disk_bytes(layers, bits) >= store.bytes_per_example + header / full
