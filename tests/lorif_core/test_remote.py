"""An index by URL: published as it is made, worked on from several machines, each with copies of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from lorif_core import Classification, FactorStore, LoRIF, StoreError, purge, removal, verify
from lorif_core import store as store_module
from lorif_core.remote import checkout
from tests.lorif_core.against_oracle import StoppingLoader
from tests.lorif_core.test_lasting import NAMES, fitted, part
from tests.lorif_core.test_store import files, loader, network


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in memory, or on a server."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4000)
    if request.param == "memory":
        return f"memory://{uuid.uuid4()}/index"
    request.getfixturevalue("s3_server")
    bucket = f"b-{uuid.uuid4()}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/some/index"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def of(name: str) -> None:
        monkeypatch.setenv("LORIF_CACHE", str(tmp_path / name))

    of("a")
    return of


def storage(url: str):
    """The instance that the library gets for this URL too."""
    return fsspec.core.url_to_fs(url, use_listings_cache=False)[0]


def objects(url: str) -> dict[str, bytes]:
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {x.removeprefix(root).lstrip("/"): files.cat_file(x) for x in files.find(root)}


def published(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name != ".origin"}


def test_an_index_is_used_and_changed_from_two_machines(url: str, machine, tmp_path: Path) -> None:
    one = fitted(url, 100)
    local = fitted(tmp_path / "local", 100)
    assert objects(url) == published(one.store.path) == files(tmp_path / "local")
    expected = local.score(loader(5))
    machine("b")
    other = LoRIF.load(url, network())
    assert torch.equal(other.score(loader(5)), expected) and other.store.path != one.store.path
    other.append(part(100, 140), ids=NAMES[100:140])
    assert other.purge(NAMES[:50:3]).rows == 17
    other.compact()
    local.append(part(100, 140), ids=NAMES[100:140]).purge(NAMES[:50:3])
    local.compact()
    assert objects(url) == published(other.store.path) == files(tmp_path / "local")
    assert not any(b"row-003" in data for data in objects(url).values())
    machine("a")
    assert torch.equal(LoRIF.load(url, network()).score(loader(5)), local.score(loader(5)))
    assert published(one.store.path) == objects(url)  # what was purged is gone from this copy too
    assert verify(url, network()) == []


def test_a_killed_fit_goes_on_on_another_machine(url: str, machine, tmp_path: Path) -> None:
    stops = StoppingLoader(list(part(0, 100)), 9, KeyboardInterrupt)
    options = {"projection": "rademacher", "bits": 32}
    with pytest.raises(KeyboardInterrupt):
        LoRIF(network(), Classification(), **options).fit(stops, url, ids=NAMES[:100])
    assert "shards/00000.safetensors" in objects(url)
    with pytest.raises(StoreError, match="unfinished"):
        FactorStore.open(url)
    machine("b")
    fitted(url, 100), fitted(tmp_path / "local", 100)
    assert objects(url) == files(tmp_path / "local")


@pytest.mark.parametrize("moment", ["put_file", "pipe_file", "rm_file"])
def test_killed_while_publishing_it_is_the_old_index_or_the_new(
    url: str, machine, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted(url, 60)
    old = objects(url)

    def dies(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage(url), moment, dies)
        with pytest.raises(KeyboardInterrupt):
            purge(url, NAMES[:9])
    now = objects(url)
    assert old.items() <= now.items() if moment != "rm_file" else now["manifest.json"] != old["manifest.json"]
    machine("b")
    assert len(FactorStore.open(url)) == (51 if moment == "rm_file" else 60)
    machine("a")
    assert purge(url, NAMES[:9]).rows == 0
    assert objects(url) == published(checkout(url)) and len(FactorStore.open(url)) == 51
    assert not any(b"row-003" in data for data in objects(url).values())


def test_two_writers_are_told_apart(url: str, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(url, 60)
    machine("b")
    FactorStore.open(url)
    with monkeypatch.context() as patched:
        patched.setattr(storage(url), "pipe_file", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            purge(url, NAMES[:3])
    machine("a")
    purge(url, NAMES[5:9])
    machine("b")
    with pytest.raises(StoreError, match="changed by another writer"):
        FactorStore.open(url)
    assert verify(url) == []  # though b's files of the same names were there before a's


def killed(url: str, moment: str, work: Callable[[], object]) -> None:
    """Do some work that dies when it first calls `moment` of the storage."""

    def dies(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storage(url), moment, dies)
        with pytest.raises(KeyboardInterrupt):
            work()


@pytest.mark.parametrize("moment", ["put_file", "pipe_file", "rm_file"])
def test_an_append_killed_while_publishing_goes_on_where_it_was(url: str, machine, moment: str) -> None:
    one = fitted(url, 60)
    killed(url, moment, lambda: one.append(part(60, 100), ids=NAMES[60:100]))
    LoRIF.load(url, network()).append(part(60, 100), ids=NAMES[60:100])
    assert objects(url) == published(checkout(url)) and verify(url) == []
    assert FactorStore.open(url).ids() == NAMES[:100]


def test_what_a_killed_purge_left_in_storage_is_named_and_removed_from_elsewhere(url: str, machine) -> None:
    fitted(url, 60)
    killed(url, "rm_file", lambda: purge(url, NAMES[:9]))
    machine("b")
    assert any(problem.startswith(f"{url}/ids.safetensors is not listed") for problem in verify(url))
    assert purge(url, NAMES[:9]).rows == 0
    assert not any(b"row-003" in data for data in objects(url).values()) and verify(url) == []


def test_a_copy_does_not_take_what_a_killed_change_left_in_it(url: str, machine, monkeypatch) -> None:
    """Another machine's change gives other content the same names."""
    fitted(url, 60)

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            purge(url, NAMES[:3])
    machine("b")
    purge(url, NAMES[5:8])
    expected = LoRIF.load(url, network()).score(loader(3))
    machine("a")
    assert torch.equal(LoRIF.load(url, network(), trust=True).score(loader(3)), expected)
    assert published(checkout(url)) == objects(url)


def test_a_copy_behind_the_storage_is_not_changed_and_can_be_opened_again(url: str, machine) -> None:
    one = fitted(url, 60)
    one.score(part(0, 5))
    assert (one.store.path / "queries").exists()
    machine("b")
    purge(url, NAMES[:5])
    machine("a")
    for change in (lambda: one.purge(NAMES[20:22]), lambda: one.append(part(60, 70), ids=NAMES[60:70]), one.refit):
        with pytest.raises(StoreError, match="open it again"):
            change()
    assert LoRIF.load(url, network()).purge(NAMES[20:22]).rows == 2
    assert not (one.store.path / "queries").exists() and len(FactorStore.open(url)) == 53


def test_an_index_changed_while_it_is_fetched_is_fetched_as_it_is_now(url: str, machine, monkeypatch) -> None:
    fitted(url, 60)
    real, asked = storage(url).open, []

    def opened(*args: object, **options: object):
        if not asked:
            asked.append(args)
            machine("a")
            purge(url, NAMES[:3])
        return real(*args, **options)

    machine("b")
    monkeypatch.setattr(storage(url), "open", opened)
    assert len(FactorStore.open(url)) == 57


def test_a_damaged_or_missing_object_is_named(url: str, machine) -> None:
    one = fitted(url, 60)
    name = one.store.manifest.shards[1].file
    there, root = fsspec.core.url_to_fs(url)
    data = bytearray(there.cat_file(f"{root}/{name}"))
    data[77] ^= 4
    there.pipe_file(f"{root}/{name}", bytes(data))
    (problem,) = verify(url)
    assert f"{url}/{name} is damaged" in problem
    there.rm_file(f"{root}/{name}")
    machine("b")
    with pytest.raises(StoreError, match=f"{name} is missing"):
        FactorStore.open(url)


def test_urls_that_cannot_be_used_are_explained(machine) -> None:
    with pytest.raises(StoreError, match="nonsense://x: "):
        FactorStore.open("nonsense://x")
    with pytest.raises(StoreError, match="as a string"):
        FactorStore.open(Path("s3://bucket/index"))
    with pytest.raises(StoreError, match="no index at"):
        FactorStore.open(f"memory://{uuid.uuid4()}")
