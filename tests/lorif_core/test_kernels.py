"""Compiled kernels: rows wherever they are cut, mapped or copied, and files that shrink under them."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorif_core import StoreError, kernels, mapping, scoring, shards
from lorif_core.kernels import Kernel
from lorif_core.mapping import MappedFile
from lorif_core.scoring import all_scores, prepared
from lorif_core.shards import Shard
from tests.lorif_core.test_scoring import BITS, CPU, SHARD, brute_force, close, index, inverses, normal, queries_of


def scored(folder: Path) -> tuple[Shard, Kernel, Tensor, Tensor]:
    """An index's only shard, a kernel of a layer, its scores [2, SHARD], and room for them once more."""
    store = index(folder, 1, 16, rows=SHARD)
    (shard,) = shards.stream(store)
    layer = store.manifest.layers[0]
    (kernel,) = kernels.prepare([layer], 16, queries_of(store, 2))
    scores, again = torch.zeros(2, 2, SHARD + kernel.rows)[..., :SHARD]
    kernel.add_scores(shard, 0, scores)
    return shard, kernel, scores, again


@pytest.mark.parametrize("keep", [0.0, 0.6, 1.0])
def test_a_kernel_names_the_file_that_shrinks_under_it(keep: float, tmp_path: Path) -> None:
    """Rows it could read are scored as ever; where the file ends before them, an error says so."""
    shard, kernel, scores, again = scored(tmp_path)
    os.truncate(shard.file.path, int(keep * shard.entry.bytes))
    if keep == 1:
        kernel.add_scores(shard, 0, again)
        assert torch.equal(scores, again)
    else:
        with pytest.raises(StoreError, match=rf"{shard.file.path.name} ends after \d+ bytes"):
            kernel.add_scores(shard, 0, again)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [1, 2, 0])
def test_a_kernel_scores_a_row_alike_whatever_lies_beside_it(
    rank: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever rows are cut, the same bits; memory full of no numbers behind copied rows is not taken for any."""
    real = MappedFile.read

    def full(self: MappedFile, start: int, stop: int, room: int = 0) -> Tensor:
        found = torch.full((stop - start + room,), 255, dtype=torch.uint8)[: stop - start]
        return found.copy_(real(self, start, stop))

    monkeypatch.setattr(MappedFile, "read", full)
    monkeypatch.setattr(mapping, "advice", lambda: 0)
    store = index(tmp_path, rank, bits, rows=2 * SHARD, sides=((7, 13), (24, 5)))
    for layer in store.manifest.layers:
        (kernel,) = kernels.prepare([layer], bits, {layer.name: normal(3, layer.d1, layer.d2)})
        found = []
        for cuts in ((0, SHARD), (0, 1, 17, SHARD)):
            for shard in shards.stream(store):
                for start, stop in pairwise(cuts):
                    room = torch.full((3, SHARD + kernel.rows), torch.nan)
                    scores = room[:, : stop - start].zero_()
                    kernel.add_scores(shard, start, scores)
                    found.append(scores)
        once, cut = torch.cat(found[:2], 1), torch.cat(found[2:], 1)
        assert bool(once.isfinite().all())
        assert torch.equal(once, cut)


def test_layers_too_large_for_a_kernel_are_scored_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside those that have one, in one pass."""
    store = index(tmp_path, 2, 16)
    found, gradients = inverses(store), queries_of(store, 2)
    monkeypatch.setattr(kernels, "LONGEST", 2 * 16)
    monkeypatch.setattr(scoring, "KERNEL_NUMBERS", 0)
    assert {kernels.suits(layer, 2) for layer in store.manifest.layers} == {True, False}
    scores = all_scores(store, prepared(gradients, found, len(store)), found, CPU, lambda done: None)
    close(scores, brute_force(store, gradients, found))


@pytest.mark.parametrize("bits", BITS)
def test_a_kernel_scores_whole_gradients_of_any_length(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some vectors of whole words, then shorter ones, then a part of one; two layers of a shape among them."""
    monkeypatch.setattr(scoring, "KERNEL_NUMBERS", 0)
    store = index(tmp_path, 0, bits, rows=SHARD, sides=((24, 25), (24, 25), (8, 32), (3, 3)))
    found, gradients = inverses(store), queries_of(store, 2)
    assert all(kernels.suits(layer, 2) for layer in store.manifest.layers)
    scores = all_scores(store, prepared(gradients, found, len(store)), found, CPU, lambda done: None)
    close(scores, brute_force(store, gradients, found))


def test_where_asking_is_refused_a_kernel_scores_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, kernel, scores, again = scored(tmp_path)
    refused = MappedFile(shard.file.path)
    monkeypatch.setattr(mapping, "POPULATE_READ", 9999)  # which no kernel knows: EINVAL
    assert refused.address(0, 1) is not None and not refused.ready()
    kernel.add_scores(Shard(refused, shard.entry, shard.tensors), 0, again)
    assert bool(scores.any()) and torch.equal(scores, again)


def test_rows_are_fetched_ahead_unless_they_are_too_long() -> None:
    """A line an instruction, which take long to compile."""
    from lorif_core.kernel_whole import whole

    def lines(size: int) -> int:
        return whole(size, 32).text.count("call void @")

    assert 0 < lines(2**10) <= 300 and lines(2**16) == 0
