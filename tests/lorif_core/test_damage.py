"""One flipped byte anywhere: `verify` names the file, and what is computed from it is refused or right."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from lorif_core import FactorStore, LoRIF, StoreError, verify
from lorif_core import store as store_module
from lorif_core.atomic import json_digest
from lorif_core.integrity import open_whole, word_sum
from lorif_core.manifest import read_manifest
from tests.lorif_core.test_lasting import NAMES, fitted, part
from tests.lorif_core.test_store import files, loader, network

TRIALS = 200


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_byte_is_named_and_never_a_wrong_score(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an index that was appended to and purged from; any byte becomes any other."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 3000)
    one = fitted(tmp_path, 60, projection="pca", projection_factor=2)
    one.append(part(60, 80), ids=NAMES[60:80]).purge(NAMES[3:6])
    expected, ids = LoRIF.load(tmp_path, network()).score(loader(3)), one.store.ids()
    clean, draw, refused = files(tmp_path), random.Random(seed), 0
    kinds = {name.partition(".")[0].partition("/")[0] for name in clean}
    assert kinds == {"manifest", "projection", "ids", "curvature", "shards"}
    for name in draw.choices(list(clean), k=TRIALS // 4):
        path, data = tmp_path / name, bytearray(clean[name])
        data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.write_bytes(data)
        problems = verify(tmp_path)
        assert len(problems) == 1 and str(path) in problems[0], problems
        shutil.rmtree(tmp_path / "queries", ignore_errors=True)  # whose gradients need no projection again
        try:
            loaded = LoRIF.load(tmp_path, network())
            assert torch.equal(loaded.score(loader(3)), expected) and loaded.store.ids() == ids
        except StoreError as error:
            assert name in str(error)
            refused += 1
        path.write_bytes(clean[name])
    assert refused == TRIALS // 4  # scores or ids are made of every one of these files
    assert verify(tmp_path) == []


def test_a_changed_shard_is_looked_at_again(tmp_path: Path) -> None:
    """A whole one is read for that once a process, unless it changed meanwhile; a trusted one never."""
    one = fitted(tmp_path, 40)
    one.store.losses()
    (shard,) = one.store.manifest.shards
    path = tmp_path / shard.file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(StoreError, match=f"{shard.file} is damaged"):
        one.store.losses()
    assert len(FactorStore.open(tmp_path, trust=True).losses()) == 40
    assert LoRIF.load(tmp_path, network(), trust=True).score(loader(3)).shape == (3, 40)
    with pytest.raises(StoreError, match="damaged"):
        open_whole(path, shard.sha256, "")  # as an older release wrote it


@pytest.mark.parametrize("length", [0, 1, 8, 13, 2**20 - 1, 2**20, 2**21 + 11])
def test_any_one_byte_changes_the_sum(length: int) -> None:
    data = bytearray(random.Random(length).randbytes(length))
    whole = word_sum(bytes(data))
    assert whole != word_sum(bytes(data) + b"\0")
    for position in {0, length // 2, length - 1} & set(range(length)):
        data[position] ^= 0x80
        assert word_sum(bytes(data)) != whole
        data[position] ^= 0x80


def test_words_and_pages_in_each_others_place_change_the_sum() -> None:
    data = random.Random(0).randbytes(2**21 + 16)
    for size, first, second in ((8, 0, 8), (8, 0, 4096), (4096, 0, 8192), (8, 2**21, 2**21 + 8), (2**20, 0, 2**20)):
        swapped = bytearray(data)
        swapped[first : first + size] = data[second : second + size]
        swapped[second : second + size] = data[first : first + size]
        assert word_sum(bytes(swapped)) != word_sum(data), (size, first, second)


def test_the_schema_before_is_read(tmp_path: Path) -> None:
    """Shards with one digest of their examples, and no sum of words."""
    one = fitted(tmp_path, 40)
    expected = one.score(loader(3))
    body = json.loads((tmp_path / "manifest.json").read_text())
    del body["digest"], body["revision"], body["purged"], body["numbered"]
    for shard in body["shards"]:
        del shard["words"]
        (span,) = shard.pop("spans")
        shard["data"] = span["data"]
    for version in (1, 2):
        old = body | {"schema_version": version}
        (tmp_path / "manifest.json").write_text(json.dumps(old | {"digest": json_digest(old)}, indent=1))
        assert verify(tmp_path, network(), part(0, 40)) == []
        assert torch.equal(LoRIF.load(tmp_path, network()).score(loader(3)), expected)
        assert read_manifest(tmp_path).data_digest() == one.store.manifest.data_digest()


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../outside": "0"}},
        {"files": {"/etc/hostname": "0"}},
        {"files": {"ids/../../outside": "0"}},
        {"files": {"shards/..": "0"}},
        {"files": {"": "0"}},
        {"schema_version": 0},
        {"schema_version": True},
        {"unknown": 1},
        {"shards": None},
        {"layers": [{}]},
    ],
)
def test_a_manifest_that_no_release_writes_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Its digest is right: somebody made it, and what it names may lie outside the folder."""
    fitted(tmp_path, 20)
    body = json.loads((tmp_path / "manifest.json").read_text())
    del body["digest"]
    body |= change
    (tmp_path / "manifest.json").write_text(json.dumps(body | {"digest": json_digest(body)}, indent=1))
    with pytest.raises(StoreError, match="manifest.json (lists files that|is damaged|is not one)"):
        FactorStore.open(tmp_path)
