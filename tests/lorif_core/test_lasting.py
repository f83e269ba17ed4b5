"""A finished index that grows, shrinks and is put in order, and what its readers see of it."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from lorif_core import Classification, FactorStore, GradDot, LoRIF, StoreError, compact, purge, verify
from lorif_core import store as store_module
from lorif_core.atomic import single_writer
from lorif_core.manifest import APPEND, Manifest, read_manifest
from tests.lorif_core.against_oracle import StoppingLoader
from tests.lorif_core.test_store import examples, files, loader, network

NAMES = [f"row-{i:03d}" for i in range(400)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4000)


def part(start: int, stop: int, without: tuple[int, ...] = ()) -> DataLoader:
    return DataLoader(Subset(examples(400), [i for i in range(start, stop) if i not in without]), batch_size=8)


def attributor(**options: object) -> LoRIF:
    return LoRIF(network(), Classification(), **{"projection": "rademacher", "bits": 32, **options})


def fitted(path: Path, count: int = 203, named: bool = True, **options: object) -> LoRIF:
    return attributor(**options).fit(part(0, count), path, ids=NAMES[:count] if named else None)


def rows_of(store: FactorStore) -> dict[str, torch.Tensor]:
    found = {
        layer.name: [b.dense(torch.device("cpu")) for b in store.blocks(layer.name, 7)]
        for layer in store.manifest.layers
    }
    return {name: torch.cat(parts) for name, parts in found.items()} | {"loss": store.losses()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.mark.parametrize("bits", [32, 16, 4])
def test_appended_rows_are_those_of_an_index_of_all(tmp_path: Path, bits: int) -> None:
    one = fitted(tmp_path / "a", 120, bits=bits)
    before = files(tmp_path / "a")
    one.append(part(120, 203), ids=NAMES[120:203])
    now = files(tmp_path / "a")
    assert all(now[name] == data for name, data in before.items() if name.startswith("shards/"))
    whole = fitted(tmp_path / "b", bits=bits)
    assert same(rows_of(one.store), rows_of(whole.store)) and one.store.ids() == whole.store.ids()
    # every row spans the curvature here, so that an update loses nothing
    torch.testing.assert_close(one.score(loader(9)), whole.score(loader(9)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.self_influence(), whole.self_influence(), rtol=1e-3, atol=1e-3)
    assert verify(tmp_path / "a", network(), part(0, 203)) == []
    fitted(tmp_path / "a", bits=bits)  # fit finds it complete


def test_ids_are_unique_and_a_repeated_append_is_recognised(tmp_path: Path) -> None:
    one = fitted(tmp_path, 120).append(part(120, 203), ids=NAMES[120:203])
    before = files(tmp_path)
    one.append(part(120, 203), ids=NAMES[120:203])
    assert files(tmp_path) == before
    with pytest.raises(StoreError, match="the data or its order changed"):
        one.append(part(121, 204), ids=NAMES[120:203])
    with pytest.raises(StoreError, match=r"has 3 of these ids already, the first are \['row-200'"):
        one.append(part(200, 210), ids=NAMES[200:210])
    with pytest.raises(StoreError, match="give those of the new examples too"):
        one.append(part(203, 210))
    with pytest.raises(StoreError, match="the new examples 7"):
        one.append(part(203, 210), ids=list(range(7, 14)))
    with pytest.raises(StoreError, match="got 2 ids for 7"):
        one.append(part(203, 210), ids=NAMES[203:205])
    assert not (tmp_path / APPEND).exists()
    with pytest.raises(StoreError, match="no examples"):
        one.append([], ids=[])
    with torch.no_grad():
        one.model[0].weight[0, 0] += 1
    with pytest.raises(StoreError, match="another model"):
        one.append(part(203, 210), ids=NAMES[203:210])
    assert len(FactorStore.open(tmp_path)) == 203


def test_rows_without_ids_keep_their_numbers(tmp_path: Path) -> None:
    one = fitted(tmp_path, 50, named=False).append(part(50, 60))
    assert one.store.manifest.file("ids") is None
    assert one.purge([3, 59, 60]).not_found == (60,)
    assert one.store.ids() == [*range(3), *range(4, 59)]
    assert one.purge([3]).rows == 0
    one.append(part(60, 70))
    assert one.store.ids() == [*range(3), *range(4, 59), *range(60, 70)]


def test_an_append_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers see the old index until it is done; whoever else would write is told of it."""
    stops = StoppingLoader(list(part(60, 203)), 12, KeyboardInterrupt)
    whole = fitted(tmp_path / "whole", 60).append(part(60, 203), ids=NAMES[60:203])
    one = fitted(tmp_path / "broken", 60)
    expected = one.score(loader(5))
    with pytest.raises(KeyboardInterrupt):
        one.append(stops, ids=NAMES[60:203])
    folder = tmp_path / "broken"
    pending = read_manifest(folder, APPEND)
    assert 60 < pending.examples < 203 and pending.shards[-1].rows % 8
    assert torch.equal(LoRIF.load(folder, network()).score(loader(5)), expected)
    assert [x for x in verify(folder) if "unfinished append" in x] == verify(folder)
    for change in (lambda: one.purge(["row-001"]), one.compact, one.refit, lambda: fitted(folder, 60)):
        with pytest.raises(StoreError, match="unfinished append"):
            change()
    with pytest.raises(StoreError, match="the data or its order changed"):
        one.append(part(61, 204), ids=NAMES[61:204])
    one.append(part(60, 203), ids=NAMES[60:203])
    assert files(folder) == files(tmp_path / "whole")
    assert torch.equal(one.score(loader(5)), whole.score(loader(5)))


GONE = (0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 77, 202)


@pytest.mark.parametrize(
    ("storage", "bits"), [("factors", 32), ("factors", 16), ("factors", 1), ("dense", 16), ("dense", 8)]
)
@pytest.mark.parametrize("rank", [3, 256])
def test_nothing_of_purged_rows_is_left_on_disk(tmp_path: Path, storage: str, bits: int, rank: int) -> None:
    one = fitted(tmp_path, storage=storage, bits=bits, projection="pca", projection_factor=2, curvature_rank=rank)
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "x.safetensors").write_bytes(b"row-005")
    patterns, touched = [], set()
    for shard in one.store.manifest.shards:
        if any(shard.start <= row < shard.start + shard.rows for row in GONE):
            touched.add(shard.file)
        with one.store.opened(shard) as file:
            for name in file.keys():  # noqa: SIM118
                rows = file.get_tensor(name)
                patterns += [
                    rows[row - shard.start].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                    for row in GONE
                    if shard.start <= row < shard.start + shard.rows
                ]
    patterns = [x for x in patterns if len(x) >= 4] + [NAMES[row].encode() for row in GONE]
    stay = [row for row in range(203) if row not in GONE]
    kept = {name: rows[stay] for name, rows in rows_of(one.store).items()}
    assert all(any(x in data for data in files(tmp_path).values()) for x in patterns)

    done = one.purge([NAMES[row] for row in GONE] + ["nobody"])
    assert (done.rows, done.not_found) == (len(GONE), ("nobody",))
    assert [x for x in patterns if any(x in data for data in files(tmp_path).values())] == []
    assert set(done.shards) == touched and not any((tmp_path / name).exists() for name in touched)
    assert same(rows_of(one.store), kept) and one.store.ids() == [NAMES[row] for row in stay]
    assert verify(tmp_path, network(), part(0, 203, GONE)) == []
    before = files(tmp_path)
    assert one.purge([NAMES[5]]) == type(done)(0, (), (NAMES[5],))
    assert files(tmp_path) == before
    for inverse in one.curvature.values():
        assert all(203 not in tensor.shape for tensor in vars(inverse).values() if isinstance(tensor, torch.Tensor))


def test_fit_finds_a_purged_index_complete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"bits": 32, "projection": "rademacher"}
    one = fitted(tmp_path)
    one.purge([NAMES[0], NAMES[100]])
    expected, before = one.score(loader(5)), files(tmp_path)
    names = [x for i, x in enumerate(NAMES[:203]) if i not in (0, 100)]
    with caplog.at_level(logging.WARNING):
        again = LoRIF(network(), Classification(), **options).fit(part(0, 203, (0, 100)), tmp_path, ids=names)
    assert torch.equal(again.score(loader(5)), expected) and files(tmp_path) == before
    assert "rows of" in caplog.text and "only counted" in caplog.text
    with pytest.raises(StoreError, match="other ids"):
        attributor().fit(
            part(0, 203, (0, 101)), tmp_path, ids=[x for i, x in enumerate(NAMES[:203]) if i not in (0, 101)]
        )
    with pytest.raises(StoreError, match="the loader's rows 46"):
        attributor().fit(part(0, 203), tmp_path, ids=NAMES[:203])
    with pytest.raises(StoreError, match="remove the folder"):
        purge(tmp_path, names)


def test_compact_keeps_rows_bit_for_bit(tmp_path: Path) -> None:
    one = fitted(tmp_path, 103)
    for start in range(103, 133, 3):
        one.append(part(start, start + 3), ids=NAMES[start : start + 3])
    one.purge(NAMES[0:60:2])
    shards, rows, ids, scores = (
        len(one.store.manifest.shards),
        rows_of(one.store),
        one.store.ids(),
        one.score(loader(5)),
    )
    merged = one.compact()
    assert len(one.store.manifest.shards) == shards - merged < shards - 5
    assert same(rows_of(one.store), rows) and one.store.ids() == ids
    torch.testing.assert_close(one.score(loader(5)), scores, rtol=1e-5, atol=1e-5)
    assert verify(tmp_path, network(), part(0, 133, tuple(range(0, 60, 2)))) == []
    sizes = [shard.rows for shard in one.store.manifest.shards]
    most = store_module.shard_rows(one.store.bytes_per_example)
    assert all(a + b > most for a, b in zip(sizes, sizes[1:], strict=False))
    assert compact(tmp_path) == 0
    one.purge(NAMES[60:70])
    assert verify(tmp_path) == []


@pytest.mark.parametrize("change", ["append", "purge", "compact"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_the_manifest_it_is_the_old_index_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, moment: str
) -> None:
    def run(one: LoRIF) -> None:
        {
            "append": lambda: one.append(part(126, 140), ids=NAMES[126:140]),
            "purge": lambda: one.purge(NAMES[3:30]),
            "compact": one.compact,
        }[change]()

    def prepared(folder: Path) -> LoRIF:
        return fitted(folder, 120).append(part(120, 123), ids=NAMES[120:123]).append(part(123, 126), ids=NAMES[123:126])

    run(prepared(tmp_path / "whole"))
    one, folder = prepared(tmp_path / "broken"), tmp_path / "broken"
    old, real = files(folder), Manifest.write

    def write(manifest: Manifest, path: Path, name: str = "manifest.json") -> None:
        if name == "manifest.json" and moment == "before":
            raise KeyboardInterrupt
        real(manifest, path, name)
        if name == "manifest.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run(one)
    present = files(folder)
    assert all(present[name] == data for name, data in old.items() if name != "manifest.json")
    assert verify(folder) and all("not listed" in x or "unfinished append" in x for x in verify(folder))
    one = LoRIF.load(folder, network())
    one.score(loader(5))
    run(one)
    assert files(folder) == files(tmp_path / "whole") and verify(folder) == []


def test_a_reader_of_the_old_index_is_told_and_never_reads_other_rows(tmp_path: Path) -> None:
    one = fitted(tmp_path)
    expected = one.score(loader(5))
    losses = one.store.losses()
    reader, lazy = LoRIF.load(tmp_path, network()), LoRIF.load(tmp_path, network())
    rows = reader.store.blocks("0", 7)
    first = next(rows).left.clone()
    mapped = next(rows).left
    whole = mapped.clone()
    assert torch.equal(reader.score(loader(5)), expected)
    purge(tmp_path, NAMES[:30])
    assert torch.equal(mapped, whole) and len(first) == 7  # what is mapped stays what it was
    for old in (reader, lazy):
        with pytest.raises(StoreError, match="open it again"):
            old.score(loader(5))
    assert torch.equal(FactorStore.open(tmp_path).losses(), losses[30:])


def test_a_second_writer_is_told_pid_and_host(tmp_path: Path) -> None:
    one = fitted(tmp_path)
    holder = f"pid {os.getpid()} on {socket.gethostname()}"
    with single_writer(tmp_path):
        for change in (
            lambda: one.append(part(203, 210), ids=NAMES[203:210]),
            lambda: one.purge(NAMES[:3]),
            one.compact,
            one.refit,
        ):
            with pytest.raises(StoreError, match=holder):
                change()
    assert verify(tmp_path) == []


def test_an_index_without_curvature_stays_so(tmp_path: Path) -> None:
    options = {"projection": "rademacher", "bits": 32}
    one = GradDot(network(), Classification(), **options).fit(part(0, 100), tmp_path, ids=NAMES[:100])
    one.append(part(100, 120), ids=NAMES[100:120])
    one.purge(NAMES[:10])
    assert one.store.manifest.curvature is None and verify(tmp_path) == []
    whole = GradDot(network(), Classification(), **options).fit(part(10, 120), tmp_path / "whole")
    torch.testing.assert_close(one.score(loader(5)), whole.score(loader(5)))


def test_as_many_ids_as_examples_are_asked_for_before_anything_is_computed(tmp_path: Path) -> None:
    seen: list[object] = []
    one = attributor(progress=lambda *told: seen.append(told))
    for ids in (NAMES[:49], [*NAMES[:49], NAMES[0]], [*NAMES[:49], 7], "x" * 50, [True] * 50):
        with pytest.raises(StoreError, match="^ids|got 49 ids for 50 examples"):
            one.fit(part(0, 50), tmp_path / "index", ids=ids)
    assert not seen and not (tmp_path / "index").exists()
    short = DataLoader(examples(400), batch_size=8, sampler=range(50), drop_last=True)  # 48 of 400
    assert one.fit(short, tmp_path / "index", ids=NAMES[:48]).store.ids() == NAMES[:48]


@pytest.mark.parametrize("ids", ["row-001", b"row-001", [True], [False, True], [1.0], [None]])
def test_what_is_no_list_of_ids_is_not_purged(tmp_path: Path, ids: object) -> None:
    one = fitted(tmp_path, 50, named=False)
    with pytest.raises(StoreError, match="^ids"):
        one.purge(ids)
    assert one.purge(x for x in torch.arange(3).numpy()).rows == 3 and len(one.store) == 47


def test_a_purge_refuses_links_and_verify_names_them(tmp_path: Path) -> None:
    """Removing one would leave the rows where it points to."""
    one = fitted(tmp_path / "index", 50)
    before = files(tmp_path / "index")
    for name in (one.store.manifest.shards[1].file, one.store.manifest.file("ids")):
        file = tmp_path / "index" / name
        file.symlink_to(file.rename(tmp_path / "elsewhere"))
        (problem,) = verify(tmp_path / "index")
        assert problem.startswith(f"{file} is a symbolic link, which purge refuses")
        with pytest.raises(StoreError, match=r"is a symbolic link \(1 in all\)"):
            one.purge(NAMES[:1])
        (tmp_path / "elsewhere").rename(file)
    assert files(tmp_path / "index") == before and one.purge(NAMES[:1]).rows == 1
