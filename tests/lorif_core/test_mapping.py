"""Files that are mapped: the same numbers as a copy's, and an error, not the end of the process, where one shrinks."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

from lorif_core import StoreError, mapping, scoring, shards
from lorif_core.mapping import MappedFile, advice
from lorif_core.scoring import prepared
from tests.lorif_core.test_scoring import CPU, SHARD, index, inverses, queries_of

SIZE = 3 * os.sysconf("SC_PAGESIZE") + 17


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256))
    return path


def test_it_is_mapped_where_that_is_safe(file: Path) -> None:
    assert advice() in ((0, mapping.POPULATE_READ) if sys.platform.startswith("linux") else (0,))
    found = MappedFile(file)
    assert found.size == SIZE
    assert (found.address(5, SIZE) is not None) == bool(advice())
    assert found.address(5, SIZE + 1) is None
    assert bytes(found.content().numpy()) == file.read_bytes()
    assert bytes(found.read(7, SIZE, room=100).numpy()) == file.read_bytes()[7:]


def test_what_is_unlinked_or_replaced_stays_whole(file: Path) -> None:
    expected, found = file.read_bytes(), MappedFile(file)
    other = file.with_name("other")
    other.write_bytes(b"another")
    os.replace(other, file)
    assert bytes(found.content().numpy()) == expected
    assert found.identity != MappedFile(file).identity
    file.unlink()
    assert bytes(found.read(0, SIZE).numpy()) == expected


@pytest.mark.parametrize("left", [0, 100, SIZE - 1])
def test_a_file_that_shrinks_is_named(left: int, file: Path) -> None:
    """Within a page as well, where its bytes would be zeros."""
    found = MappedFile(file)
    found.fetch()
    os.truncate(file, left)
    assert not found.fetch()
    with pytest.raises(StoreError, match=f"ends after {left} bytes, {SIZE - left} too early"):
        found.content()


def test_a_file_that_cannot_be_mapped_is_copied(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice()  # maps a page the first time

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    found = MappedFile(file)
    assert found.address(0, 1) is None and not found.fetch()
    assert bytes(found.content().numpy()) == file.read_bytes()


@pytest.mark.parametrize(("rank", "bits"), [(1, 16), (2, 4), (0, 8), (0, 32)])
def test_mapped_rows_give_the_scores_of_copies(
    rank: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit."""
    store = index(tmp_path, rank, bits, rows=2 * SHARD + 3)
    found, gradients = inverses(store), queries_of(store, 3)
    monkeypatch.setattr(scoring, "KERNEL_NUMBERS", 0)
    scores = []
    for asked in (advice(), 0):
        monkeypatch.setattr(mapping, "advice", lambda asked=asked: asked)
        assert all((x.file.address(0, 8) is None) == (not asked) for x in shards.stream(store))
        queries = prepared(gradients, found, len(store))
        scores.append(scoring.all_scores(store, queries, found, CPU, lambda done: None))
    assert torch.equal(*scores)
