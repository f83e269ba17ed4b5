"""Writing beside computing: what fails there is raised, what is interrupted ends before the folder is let go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorif_core import Classification, LoRIF, verify
from lorif_core import store as store_module
from lorif_core import writer as writer_module
from lorif_core.atomic import single_writer
from lorif_core.manifest import Manifest, read_manifest
from tests.lorif_core.test_store import files, loader, network


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SHARD_BYTES", 4000)


class Watched:
    """The loader, which calls `before` with the number of every batch it is going to give."""

    def __init__(self, before: Callable[[int], None]) -> None:
        self.before, self.given = before, 0

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(loader()):
            self.before(number)
            self.given = number + 1
            yield batch


def fit(batches: Any, folder: Path) -> dict[str, bytes]:
    LoRIF(network(), Classification(), projection="rademacher", bits=32).fit(batches, folder)
    return files(folder)


def writing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lorif-writer")]


def watch_writes(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Call `before` in the writing thread, ahead of every shard."""
    real = store_module.write_shard

    def write(*arguments: Any) -> Manifest:
        before()
        return real(*arguments)

    monkeypatch.setattr(writer_module, "write_shard", write)


def test_the_next_shard_is_computed_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(loader(), tmp_path / "plain")
    begun, drawn = threading.Event(), threading.Event()
    waited: list[bool] = []

    def hold() -> None:
        begun.set()
        waited.append(drawn.wait(20))

    def go_on(number: int) -> None:
        if begun.is_set():
            drawn.set()

    with monkeypatch.context() as patched:
        watch_writes(patched, hold)
        assert fit(Watched(go_on), tmp_path / "slow") == expected
    assert len(waited) > 2 and all(waited)
    assert writing_threads() == []


def test_a_failed_write_is_raised_soon_and_the_build_goes_on_from_there(tmp_path: Path) -> None:
    expected = fit(loader(), tmp_path / "whole")
    folder = tmp_path / "broken"
    in_the_way = folder / "shards" / "00001.safetensors"

    def obstruct(number: int) -> None:
        if (folder / "shards").exists():
            in_the_way.mkdir(exist_ok=True)  # no file can be renamed to a folder

    batches = Watched(obstruct)
    with pytest.raises(IsADirectoryError, match="00001.safetensors"):
        fit(batches, folder)
    assert batches.given < len(loader())
    assert writing_threads() == []
    assert [shard.file for shard in read_manifest(folder).shards] == ["shards/00000.safetensors"]
    in_the_way.rmdir()
    assert fit(loader(), folder) == expected
    assert verify(folder) == []


def test_an_interrupt_waits_for_the_shard_in_work_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fit(loader(), tmp_path / "whole")
    folder = tmp_path / "broken"
    begun, interrupted = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        interrupted.wait(20)

    def interrupt(number: int) -> None:
        if begun.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        watch_writes(patched, hold)
        with pytest.raises(KeyboardInterrupt):
            fit(Watched(interrupt), folder)
    assert writing_threads() == []
    with single_writer(folder):
        assert len(read_manifest(folder).shards) == 1  # the one that was in work is whole and listed
    assert fit(loader(), folder) == expected
    assert verify(folder) == []


def test_an_interrupt_in_the_writing_thread_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        watch_writes(patched, stop)
        with pytest.raises(KeyboardInterrupt):
            fit(loader(), tmp_path)
    assert read_manifest(tmp_path).shards == [] and writing_threads() == []
    assert fit(loader(), tmp_path) == fit(loader(), tmp_path / "whole")
