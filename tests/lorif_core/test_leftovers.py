"""What writers, workers and readers leave behind: it is named by `verify`, keeps nobody out, and goes with purged rows."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Subset

from lorif_core import LoRIF, StoreError, compact, purge, removal, verify
from lorif_core import store as store_module
from lorif_core.manifest import APPEND, Manifest
from lorif_core.parallel import build_part, join, make_head
from tests.lorif_core.test_lasting import NAMES, attributor, fitted, part
from tests.lorif_core.test_store import examples, files, network


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4000)


def test_a_worker_that_outlives_the_writer_does_not_keep_its_lock(tmp_path: Path) -> None:
    """A loader with persistent workers has them forked while the index is written."""
    rows = DataLoader(Subset(examples(400), range(24)), batch_size=8, num_workers=1, persistent_workers=True)
    one = attributor().fit(rows, tmp_path)  # which takes the lock twice: for the rows, and for the curvature
    assert rows._iterator._workers[0].is_alive()
    assert one.purge([3]).rows == 1


@pytest.mark.parametrize("change", [lambda folder: purge(folder, ["x"]), compact])
def test_a_folder_that_is_not_there_is_no_index(tmp_path: Path, change: Callable[[Path], object]) -> None:
    with pytest.raises(StoreError, match="no index at"):
        change(tmp_path / "nowhere")


def test_queries_that_a_reader_keeps_while_a_purge_works_are_gone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted(tmp_path, 60)
    reader, real, kept = LoRIF.load(tmp_path, network()), removal.write_ids, tmp_path / "queries"

    def write_ids(*arguments: object) -> Manifest:
        reader.score(part(0, 5))
        assert list(kept.iterdir())
        return real(*arguments)

    monkeypatch.setattr(removal, "write_ids", write_ids)
    assert purge(tmp_path, NAMES[:5]).rows == 5
    assert not kept.exists() and verify(tmp_path) == []
    LoRIF.load(tmp_path, network()).score(part(0, 5))
    assert purge(tmp_path, NAMES[:5]).rows == 0 and not kept.exists()  # of a purge that was killed


def test_parts_that_joining_left_are_named_and_go_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers' parts have the ids of their rows; joining them was killed right after it wrote the manifest."""
    build = attributor().build(part(0, 100), tmp_path, NAMES[:100])
    make_head(build, 2)
    for worker in (0, 1):
        build_part(build, worker, 2)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *arguments: sys.exit())
        with pytest.raises(SystemExit):
            join(tmp_path, NAMES[:100])
    (problem,) = verify(tmp_path)
    assert f"{tmp_path / 'parts'} is not listed" in problem
    assert purge(tmp_path, NAMES[:9]).rows == 9
    assert not any(b"row-003" in data for data in files(tmp_path).values()) and verify(tmp_path) == []


def test_foreign_files_are_named_and_removed(tmp_path: Path) -> None:
    fitted(tmp_path, 60)
    (tmp_path / "shards" / "sub").mkdir()
    foreign = [tmp_path / "shards" / "sub" / "x", tmp_path / "projection.safetensors", tmp_path / ".ids.1.tmp"]
    for file in foreign:
        file.write_bytes(b"x")
    assert len(verify(tmp_path)) == 3
    purge(tmp_path, NAMES[:1])
    assert not any(file.exists() for file in foreign) and verify(tmp_path) == []


@pytest.mark.parametrize("ids", [["x"] * 8, [*NAMES[60:67], 7]])
def test_ids_of_no_use_are_refused_before_an_append_begins(tmp_path: Path, ids: list[object]) -> None:
    one = fitted(tmp_path, 60)
    with pytest.raises(StoreError, match="ids must be"):
        one.append(part(60, 68), ids=ids)
    assert not (tmp_path / APPEND).exists() and one.purge(NAMES[:1]).rows == 1
