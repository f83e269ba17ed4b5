"""The store on disk: killed and continued, verified, refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import Classification, FactorStore, LoRIF, StoreError, verify
from lorif_core import store as store_module
from lorif_core.manifest import read_manifest
from lorif_core.store import decode_ids, encode_ids, shard_rows

SCRIPT = """
import sys, time, torch
from lorif_core import Classification, LoRIF
from lorif_core import store
from tests.lorif_core.test_store import examples, loader, network
store.SHARD_BYTES = 4096
class Slow:
    dataset = loader().dataset
    def __iter__(self):
        for batch in loader():
            time.sleep(0.01)
            yield batch
attributor = LoRIF(network(), Classification(), projection="pca", projection_factor=2, bits=32)
attributor.fit(Slow(), sys.argv[1], ids=[f"row-{i}" for i in range(203)])
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 3))


def examples(count: int = 203) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(400, 20, generator=generator), torch.randint(0, 3, (400,), generator=generator)
    return TensorDataset(x[:count], y[:count])


def loader(count: int = 203, batch_size: int = 8) -> DataLoader:
    return DataLoader(examples(count), batch_size=batch_size)


def fitted(path: Path, **options: object) -> LoRIF:
    return LoRIF(network(), Classification(), **options).fit(loader(), path)


def files(path: Path) -> dict[str, bytes]:
    """What belongs to the index: queries kept beside it do not."""
    found = {str(x.relative_to(path)): x for x in sorted(path.rglob("*")) if x.is_file() and x.name != ".lock"}
    return {name: x.read_bytes() for name, x in found.items() if not name.startswith("queries/")}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4000)


def test_killed_at_random_moments_it_ends_bit_identical(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def run(folder: Path, seconds: float | None) -> None:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment)
        if seconds is None:
            assert process.wait(120) == 0
            return
        shards, deadline = folder / "shards", time.monotonic() + 60
        while not shards.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(60)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, None)
    draw = random.Random(0)
    for _ in range(3):
        run(broken, draw.uniform(0, 0.3))
    run(broken, None)
    assert files(broken) == files(whole)
    assert verify(broken) == []


def test_continues_in_the_middle_of_a_batch(tmp_path: Path, small_shards: None) -> None:
    rows_a_shard = shard_rows(fitted(tmp_path / "whole", projection="rademacher", bits=32).store.bytes_per_example)
    assert rows_a_shard % 8  # a shard ends inside a batch

    class Stops:
        def __iter__(self):
            for number, batch in enumerate(loader()):
                if number == 15:
                    raise KeyboardInterrupt
                yield batch

    attributor = LoRIF(network(), Classification(), projection="rademacher", bits=32)
    with pytest.raises(KeyboardInterrupt):
        attributor.fit(Stops(), tmp_path / "broken")
    assert 0 < read_manifest(tmp_path / "broken").examples < 203
    attributor.fit(loader(), tmp_path / "broken")
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_an_unfinished_index_is_not_read(tmp_path: Path, small_shards: None) -> None:
    fitted(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest.with_(complete=False).write(tmp_path)
    with pytest.raises(StoreError, match="unfinished"):
        LoRIF.load(tmp_path, network())


@pytest.mark.parametrize(
    "file", ["manifest.json", "projection.safetensors", "curvature.safetensors", "shards/00000.safetensors"]
)
def test_a_flipped_byte_is_found_and_named(tmp_path: Path, file: str) -> None:
    fitted(tmp_path, projection_factor=2)
    clean = (tmp_path / file).read_bytes()
    draw = random.Random(file)
    for _ in range(10):
        position = draw.randrange(len(clean))
        damaged = bytearray(clean)
        damaged[position] ^= 1 << draw.randrange(8)
        (tmp_path / file).write_bytes(bytes(damaged))
        problems = verify(tmp_path)
        assert len(problems) == 1 and file in problems[0], (position, problems)
    (tmp_path / file).write_bytes(clean)
    assert verify(tmp_path) == []


def test_verify_names_missing_foreign_and_changed(tmp_path: Path, small_shards: None) -> None:
    fitted(tmp_path)
    assert verify(tmp_path, network(), loader()) == []
    (tmp_path / "shards" / "00001.safetensors").unlink()
    (tmp_path / "shards" / "x.safetensors").write_bytes(b"")
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    changed = DataLoader(TensorDataset(*(t.flip(0) for t in examples().tensors)), batch_size=8)
    problems = "\n".join(verify(tmp_path, other, changed))
    for expected in ("00001.safetensors is missing", "x.safetensors is not listed", "another model", "rows 0 to"):
        assert expected in problems
    assert verify(tmp_path / "nowhere")[0].startswith("no index at")
    with pytest.raises(StoreError, match="00001.safetensors: expected .* no file"):
        FactorStore.open(tmp_path)


def test_another_index_in_the_folder_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path)
    with pytest.raises(StoreError, match="factor_rank: 1 -> 2"):
        fitted(tmp_path, factor_rank=2)
    other = network()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    with pytest.raises(StoreError, match="model"):
        LoRIF(other, Classification()).fit(loader(), tmp_path)
    with pytest.raises(StoreError, match="another model"):
        LoRIF.load(tmp_path, other)
    changed = DataLoader(TensorDataset(*(t.flip(0) for t in examples().tensors)), batch_size=8)
    with pytest.raises(StoreError, match="the data or its order changed"):
        LoRIF(network(), Classification()).fit(changed, tmp_path)
    for count in (100, 300):
        with pytest.raises(StoreError, match=f"loader gave (only )?{count}"):
            LoRIF(network(), Classification()).fit(loader(count), tmp_path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    from lorif_core.atomic import single_writer

    with single_writer(tmp_path), pytest.raises(StoreError, match=f"pid {os.getpid()}"):
        fitted(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path)
    body = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(body | {"schema_version": 99}))
    with pytest.raises(StoreError, match="schema version 99"):
        FactorStore.open(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{}", '{"format": "lorif-factors"}', "not json"])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert len(verify(tmp_path)) == 1
    with pytest.raises(StoreError, match=r"manifest\.json"):
        FactorStore.open(tmp_path)


@pytest.mark.parametrize("ids", [["a", "ü", "", "c d"], [3, 1, -(2**62)]])
def test_ids_come_back(ids: list) -> None:
    assert decode_ids(encode_ids(ids)) == ids


@pytest.mark.parametrize(
    ("ids", "message"), [(["a", "a"], "unique"), (["a", 1], "all strings"), ([1.5, 2.5], "all strings")]
)
def test_wrong_ids_are_refused(ids: list, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        encode_ids(ids)


def test_ids_must_fit_the_rows(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got 2 ids for 203"):
        LoRIF(network(), Classification()).fit(loader(), tmp_path, ids=["a", "b"])
    ids = [f"row {i}" for i in range(203)]
    attributor = LoRIF(network(), Classification()).fit(loader(), tmp_path, ids=ids)
    assert attributor.store.ids() == ids
    with pytest.raises(StoreError, match="under other ids"):
        LoRIF(network(), Classification()).fit(loader(), tmp_path, ids=ids[::-1])


def test_a_loaded_index_scores_as_the_fitted_one(tmp_path: Path) -> None:
    attributor = fitted(tmp_path)
    queries = loader(5)
    loaded = LoRIF.load(tmp_path, network())
    assert torch.equal(loaded.score(queries), attributor.score(queries))
    assert torch.equal(loaded.self_influence(), attributor.self_influence())


def test_other_damping_leaves_a_loaded_index_as_it_is(tmp_path: Path) -> None:
    queries, curvature = loader(5), {"curvature_rank": 3, "damping_rule": "trace"}
    fitted(tmp_path / "a", **curvature)
    expected = fitted(tmp_path / "b", damping=5.0, **curvature).score(queries)
    before = files(tmp_path / "a")
    torch.testing.assert_close(LoRIF.load(tmp_path / "a", network(), damping=5.0).score(queries), expected)
    for changed in ({"curvature_rank": 2}, {"damping_rule": "mean_norm"}):
        other = LoRIF.load(tmp_path / "a", network(), **changed).score(queries)
        assert not torch.allclose(other, expected, rtol=1e-3)
    kept = {name: data for name, data in files(tmp_path / "a").items() if not name.startswith("queries/")}
    assert before == kept and verify(tmp_path / "a") == []


def test_a_full_disk_leaves_nothing_that_passes_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4000)
    real, calls = os.fsync, []

    def fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space left"):
        fitted(tmp_path / "full")
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(StoreError, match="unfinished"):
        FactorStore.open(tmp_path / "full")
    fitted(tmp_path / "full"), fitted(tmp_path / "whole")
    assert files(tmp_path / "full") == files(tmp_path / "whole")
