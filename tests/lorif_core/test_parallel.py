"""Several workers, one index: the same files as by one process, whatever is interrupted, and clear refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lorif_core import CausalLM, Classification, LoRIF, StoreError, verify
from lorif_core import parallel as parallel_module
from lorif_core import store as store_module
from lorif_core.index import Build
from lorif_core.manifest import read_manifest
from lorif_core.parallel import Split, build_part, join, make_head, rows_done
from tests.lorif_core.test_store import examples, files, fitted, loader, network

IDS = [f"row-{i}" for i in range(203)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 330)


def attributor(**options: Any) -> LoRIF:
    return LoRIF(network(), Classification(), **options)


def build(path: Path, batches: Any = None, ids: Any = None, **options: Any) -> Build:
    return attributor(**options).build(loader() if batches is None else batches, path, ids)


def build_all(one: Build, workers: int) -> None:
    make_head(one, workers)
    for worker in reversed(range(workers)):
        build_part(one, worker, workers)
    join(one.path, one.ids)


def same_files(path: Path, other: Path) -> bool:
    """Whether two indices are the same, their curvature, which joining does not make, aside."""
    names = {name for name in files(path) | files(other) if name.startswith("shards") or name == "ids.safetensors"}
    return all(files(path).get(name) == files(other).get(name) for name in names) and [
        x.sha256 for x in read_manifest(path).shards
    ] == [x.sha256 for x in read_manifest(other).shards]


@pytest.mark.parametrize(
    ("options", "workers"),
    [({"projection": "rademacher"}, n) for n in (1, 2, 3, 5)] + [({"projection": "pca", "bits": 4}, n) for n in (2, 3)],
    ids=str,
)
def test_the_files_are_those_of_one_process(tmp_path: Path, workers: int, options: dict[str, Any]) -> None:
    whole = attributor(**options).fit(loader(), tmp_path / "whole", ids=IDS)
    assert len(whole.store.manifest.shards) >= workers * parallel_module.SHARDS_EACH
    one = build(tmp_path / "parts", ids=IDS, **options)
    build_all(one, workers)
    assert same_files(tmp_path / "parts", tmp_path / "whole")
    attributor(**options).fit(loader(), tmp_path / "parts", ids=IDS)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert verify(tmp_path / "parts", network(), loader()) == []


def test_few_shards_become_more_and_smaller_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 2**20)
    whole = fitted(tmp_path / "whole", projection="rademacher")
    build_all(build(tmp_path / "parts", projection="rademacher"), 2)
    parts = fitted(tmp_path / "parts", projection="rademacher")
    assert (len(whole.store.manifest.shards), len(parts.store.manifest.shards)) == (1, 8)
    assert torch.equal(parts.store.losses(), whole.store.losses())
    torch.testing.assert_close(parts.score(loader(9)), whole.score(loader(9)), rtol=1e-4, atol=1e-6)


class Reader:
    """Batches of a list, read one after the other, however often."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(examples())


@pytest.mark.parametrize(
    "batches",
    [
        lambda: list(loader()),
        lambda: Reader(list(loader())),
        lambda: DataLoader(Stream(), batch_size=8),
        lambda: DataLoader(examples(), batch_sampler=[list(range(i, min(i + 8, 203))) for i in range(0, 203, 8)]),
    ],
    ids=["list", "own class", "stream", "batch sampler"],
)
def test_any_loader_can_be_split(tmp_path: Path, batches: Callable[[], Any]) -> None:
    fitted(tmp_path / "whole", projection="rademacher")
    build_all(build(tmp_path / "parts", batches(), projection="rademacher"), 2)
    assert same_files(tmp_path / "parts", tmp_path / "whole")


def test_a_short_last_batch_that_is_dropped_is_no_part(tmp_path: Path) -> None:
    batches = DataLoader(examples(), batch_size=8, drop_last=True)
    attributor(projection="rademacher").fit(batches, tmp_path / "whole")
    build_all(build(tmp_path / "parts", batches, projection="rademacher"), 2)
    assert read_manifest(tmp_path / "parts").examples == 200
    assert same_files(tmp_path / "parts", tmp_path / "whole")


class Tagger(nn.Module):
    """A small language model with padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden, self.head = nn.Embedding(30, 12), nn.Linear(12, 12), nn.Linear(12, 30)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(self.embed(input_ids))))


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """To the longest of the batch, as tokenizers do."""
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def test_texts_padded_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 2000)
    generator = torch.Generator().manual_seed(3)
    texts = [
        torch.randint(1, 30, (int(n),), generator=generator) for n in torch.randint(3, 12, (120,), generator=generator)
    ]
    batches = DataLoader(texts, batch_size=7, collate_fn=padded)  # type: ignore[arg-type]
    one = LoRIF(Tagger(), CausalLM(), projection="rademacher", bits=32, projection_factor=2)
    one.fit(batches, tmp_path / "whole")
    build_all(one.build(batches, tmp_path / "parts"), 3)
    assert verify(tmp_path / "parts", loader=batches) == []
    other = LoRIF(Tagger(), CausalLM(), projection="rademacher", bits=32, projection_factor=2)
    other.fit(batches, tmp_path / "parts")
    torch.testing.assert_close(other.score(batches), one.score(batches), rtol=1e-3, atol=1e-5)


class Stops:
    """Stops after some batches, and again at the next try a little later."""

    def __init__(self, after: int) -> None:
        self.after, self.dataset = after, examples()

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(loader()):
            if number == self.after:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("projection", ["rademacher", "pca"])
def test_an_interrupted_part_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, projection: str
) -> None:
    fitted(tmp_path / "whole", projection=projection)
    one = build(tmp_path / "parts", projection=projection)
    make_head(one, 2)
    monkeypatch.setattr(parallel_module, "batch_sizes", lambda batches: [8] * 25 + [3])
    for after in (18, 22):
        with pytest.raises(KeyboardInterrupt):
            build_part(build(tmp_path / "parts", Stops(after), projection=projection), 1, 2)
        assert 0 < rows_done(tmp_path / "parts") < 101
    with pytest.raises(StoreError, match=r"parts.0-of-2.*manifest.json is missing"):
        join(tmp_path / "parts", None)
    for worker in range(2):
        build_part(one, worker, 2)
    assert rows_done(tmp_path / "parts") == 203
    join(tmp_path / "parts", None)
    assert same_files(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("moment", [0, 1, 15, 28, 29, 30, 31, 32, 33])
def test_an_interrupted_join_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    fitted(tmp_path / "whole", projection="rademacher")
    one = build(tmp_path / "parts", ids=IDS, projection="rademacher")
    make_head(one, 3)
    for worker in range(3):
        build_part(one, worker, 3)
    calls = iter(range(1000))
    with monkeypatch.context() as patch:
        for where, name in ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            kept = getattr(where, name)

            def sometimes(*args: Any, kept: Callable[..., Any] = kept, **named: Any) -> Any:
                if next(calls) == moment:
                    raise KeyboardInterrupt
                return kept(*args, **named)

            patch.setattr(where, name, sometimes)
        with pytest.raises(KeyboardInterrupt):
            join(tmp_path / "parts", IDS)
    make_head(one, 3)  # what a new start does first
    for worker in range(3):
        build_part(one, worker, 3)
    join(tmp_path / "parts", IDS)
    assert [x.sha256 for x in read_manifest(tmp_path / "parts").shards] == [
        x.sha256 for x in read_manifest(tmp_path / "whole").shards
    ]
    assert verify(tmp_path / "parts") == []
    assert not (tmp_path / "parts" / "parts").exists()


def test_a_shard_damaged_while_it_was_moved_is_noticed(tmp_path: Path) -> None:
    one = build(tmp_path, projection="rademacher")
    make_head(one, 2)
    for worker in range(2):
        build_part(one, worker, 2)
    part = tmp_path / "parts" / "1-of-2" / "shards" / "00000.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=r"expected \d+ bytes, got"):
        join(tmp_path, None)
    part.unlink()
    with pytest.raises(StoreError, match="is missing"):
        join(tmp_path, None)


def test_what_another_number_of_workers_began_is_refused(tmp_path: Path) -> None:
    one = build(tmp_path, projection="rademacher")
    make_head(one, 2)
    build_part(one, 0, 2)
    with pytest.raises(StoreError, match="begun by 2 workers, now there are 3: continue with 2, or remove .*parts"):
        make_head(one, 3)
    with pytest.raises(StoreError, match="begun by 2 workers"):
        build_part(one, 0, 3)
    with pytest.raises(StoreError, match="being built by several workers"):
        one.run()
    make_head(one, 2)
    build_part(one, 1, 2)
    join(tmp_path, None)
    one.run()


def test_what_one_process_began_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, Stops(15), projection="rademacher").run()
    with pytest.raises(StoreError, match="one process indexed: finish it with one"):
        make_head(build(tmp_path, projection="rademacher"), 2)


def test_other_data_models_and_ids_are_refused(tmp_path: Path) -> None:
    one = build(tmp_path, projection="rademacher")
    with pytest.raises(StoreError, match="all workers must see one disk"):
        build_part(one, 0, 2)
    one.head()
    with pytest.raises(StoreError, match="split.json is missing"):
        build_part(one, 0, 2)
    make_head(one, 2)
    with pytest.raises(StoreError, match="begun for 203 examples, the loader gives 180"):
        build_part(build(tmp_path, loader(180), projection="rademacher"), 0, 2)
    with pytest.raises(StoreError, match="made otherwise"):
        build_part(build(tmp_path, projection="identity"), 0, 2)
    with pytest.raises(StoreError, match="got 5 ids for 203 examples"):
        make_head(build(tmp_path, ids=IDS[:5], projection="rademacher"), 2)
    with pytest.raises(StoreError, match="unique"):
        make_head(build(tmp_path, ids=["a"] * 203, projection="rademacher"), 2)
    sampler = DistributedSampler(examples(), num_replicas=2, rank=0, shuffle=False)
    with pytest.raises(ValueError, match="gives each rank other rows"):
        make_head(build(tmp_path, DataLoader(examples(), 8, sampler=sampler), projection="rademacher"), 2)


def test_a_gradient_that_is_not_finite_is_named_by_its_row(tmp_path: Path) -> None:
    rows = TensorDataset(*examples().tensors)
    rows.tensors[0][150] = torch.inf
    one = build(tmp_path, DataLoader(rows, batch_size=8), projection="rademacher")
    make_head(one, 2)
    build_part(one, 0, 2)
    with pytest.raises(ValueError, match=r"ids \[150\]"):
        build_part(one, 1, 2)


@pytest.mark.parametrize(("examples", "workers", "shard_rows"), [(203, 3, 7), (5, 8, 1), (64, 4, 4), (1, 1, 9)])
def test_every_row_has_one_worker(examples: int, workers: int, shard_rows: int) -> None:
    split = Split(examples, workers, shard_rows)
    parts = [split.rows(worker) for worker in range(workers)]
    assert [row for part in parts for row in part] == list(range(examples))
    assert all(part.start % shard_rows == 0 for part in parts if part)
