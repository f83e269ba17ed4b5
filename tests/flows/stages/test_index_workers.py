"""Index and scores by several processes: ranks of torchrun, tasks on Ray; some of them killed. Always the same results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from curation.errors import CurationError
from flows.config import ConfigError, load_config
from flows.schema import CleanConfig, IndexConfig
from flows.stages import indexing, influence, scoring
from flows.stages.common import new_model, open_data
from lorif_core import FactorStore, verify

CONFIGS, ROOT = Path(__file__).parents[3] / "configs", Path(__file__).parents[3]
# A model that takes its time, or cannot see the row a file names.
MODEL = """
import time
from pathlib import Path
from curation.models import ImageClassifier

class Slow(ImageClassifier):
    def forward(self, x):
        wait = Path(__file__).with_name("seconds")
        if wait.exists():
            time.sleep(float(wait.read_text()))
        if Path(__file__).with_name("broken").exists() and len(x) == 6:  # the last batch of 1,438 rows
            raise OSError("no such picture")
        return super().forward(x)
"""


def quiet(text: str, done: int, total: int | None) -> None:
    pass


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    root = tmp_path_factory.mktemp("job")
    (root / "slow_model.py").write_text(MODEL)
    tree = {
        "data": {"class_path": "Digits"},
        "model": {"class_path": "slow_model.Slow", "init_args": {"arch": "mlp", "hidden": [8]}},
        "index": {"batch_size": 8},
        "root": str(root),
    }
    arguments = CleanConfig.model_validate(tree).model_dump(mode="json") | {"data_digest": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        model = new_model(arguments, open_data(arguments), seed=0)
        torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, root / "m.ckpt")
        yield arguments | {"checkpoint": str(root / "m.ckpt")}


@pytest.fixture(scope="module")
def alone(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FactorStore:
    """The index that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    indexing.run(job, folder, quiet)
    return FactorStore.open(folder / "index")


def by_two(job: dict[str, Any], runner: str = "local") -> dict[str, Any]:
    return {**job, "index": {**job["index"], "workers": 2, "runner": runner}}


def check_same(folder: Path, alone: FactorStore) -> None:
    """The index in `folder` has the rows of the other, in smaller shards, as there are few."""
    store = FactorStore.open(folder / "index")
    assert verify(store.path) == []
    assert sorted(x.name for x in folder.iterdir()) == ["index"]
    assert store.ids() == alone.ids()
    assert (store.manifest.curvature or {})["options"] == (alone.manifest.curvature or {})["options"]
    first, second = ([load_file(x.path / shard.file) for shard in x.manifest.shards] for x in (store, alone))
    for name in second[0]:
        assert torch.equal(torch.cat([x[name] for x in first]), torch.cat([x[name] for x in second])), name


def kill_second_worker(job: dict[str, Any], folder: Path, run: Callable[[], object], *, parent: bool = False) -> None:
    """Run, and kill the process of the second part, or its parent, once it has written two shards."""
    seconds = Path(job["root"]) / "seconds"
    seconds.write_text("0.05")
    part, killed = folder / "index" / "parts" / "1-of-2", []

    def kill() -> None:
        end = time.monotonic() + 600  # Prefect and Ray start first, on a machine that may be busy
        while not (part / "shards" / "00001.safetensors").exists() and time.monotonic() < end:
            time.sleep(0.02)
        killed.append(int((part / ".lock").read_text().split()[0]))
        victim = int(Path(f"/proc/{killed[0]}/stat").read_text().rpartition(")")[2].split()[1]) if parent else killed[0]
        os.kill(victim, signal.SIGKILL)
        seconds.unlink()

    thread = threading.Thread(target=kill)
    thread.start()
    run()
    thread.join()
    assert killed


@pytest.mark.slow
def test_ranks_make_the_index_of_one_process(job: dict[str, Any], alone: FactorStore, tmp_path: Path) -> None:
    told: list[str] = []
    indexing.run(by_two(job), tmp_path, lambda text, done, total: told.append(text))
    assert "index, part 1 of 2" in told and "index, part 2 of 2" not in told
    check_same(tmp_path, alone)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_replaced(job: dict[str, Any], alone: FactorStore, tmp_path: Path) -> None:
    kill_second_worker(job, tmp_path, lambda: indexing.run(by_two(job), tmp_path, quiet))
    check_same(tmp_path, alone)


@pytest.mark.slow
def test_what_a_rank_raises_is_said_once(job: dict[str, Any], tmp_path: Path) -> None:
    broken = Path(job["root"]) / "broken"
    broken.touch()
    try:
        with pytest.raises(CurationError, match="no such picture"):
            indexing.run(by_two(job), tmp_path, quiet)
    finally:
        broken.unlink()


@pytest.mark.slow
def test_no_rank_outlives_its_stage(job: dict[str, Any], tmp_path: Path) -> None:
    (Path(job["root"]) / "seconds").write_text("0.2")
    script = f"""
import sys
sys.path.insert(0, {job["root"]!r})
from pathlib import Path
from flows.stages import indexing, influence, scoring
indexing.run({by_two(job)!r}, Path({str(tmp_path)!r}), lambda text, done, total: None)
"""
    stage = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    locks = [tmp_path / "index" / "parts" / f"{rank}-of-2" / ".lock" for rank in range(2)]
    end = time.monotonic() + 120
    while not all(lock.exists() and lock.read_text() for lock in locks):
        assert time.monotonic() < end
        time.sleep(0.05)
    ranks = [int(lock.read_text().split()[0]) for lock in locks]
    stage.kill()
    stage.wait()
    while any(alive(pid) for pid in ranks):
        assert time.monotonic() < end, "a rank is left"
        time.sleep(0.05)
    (Path(job["root"]) / "seconds").unlink()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.slow
def test_ranks_find_the_scores_of_one_process(
    job: dict[str, Any], alone: FactorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_scores(job, alone, tmp_path, "local", monkeypatch)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray cluster of two processors, and a Prefect of the test's own."""
    import ray

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    context = ray.init(num_cpus=2, log_to_driver=False)
    monkeypatch.setenv("RAY_ADDRESS", context.address_info["gcs_address"])
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize("parent", [False, True], ids=["its process", "the Ray worker"])
def test_on_ray_a_share_that_is_killed_is_done_again(
    job: dict[str, Any], alone: FactorStore, tmp_path: Path, cluster: None, parent: bool
) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    kill_second_worker(job, folder, lambda: indexing.run(by_two(job, "ray"), folder, quiet), parent=parent)
    check_same(folder, alone)


@pytest.mark.ray
def test_on_ray_what_a_share_raises_is_said(job: dict[str, Any], tmp_path: Path, cluster: None) -> None:
    broken = Path(job["root"]) / "broken"
    broken.touch()
    try:
        with pytest.raises(CurationError, match="OSError: no such picture"):
            indexing.run(by_two(job, "ray"), tmp_path, quiet)
    finally:
        broken.unlink()


@pytest.mark.ray
def test_on_ray_the_scores_are_those_of_one_process(
    job: dict[str, Any], alone: FactorStore, tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_scores(job, alone, tmp_path, "ray", monkeypatch)


def check_scores(
    job: dict[str, Any], alone: FactorStore, folder: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score stage by two processes gives the table that one gives; so few rows one would do alone."""
    asked = {"self_influence": True, "proponent_votes": True, "trusted_influence": True}
    one = {**job, "signals": job["signals"] | asked, "index_path": str(alone.path)}
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    scoring.run(by_two(one), folder / "one", quiet)
    monkeypatch.setattr(influence, "SHARED_FROM", 0)
    scoring.run(by_two(one, runner), folder / "two", quiet)
    assert sorted(x.name for x in (folder / "two").iterdir()) == ["kernel.npy", "scores.parquet"]
    tables = [pl.read_parquet(folder / name / "scores.parquet") for name in ("one", "two")]
    assert_frame_equal(*tables, rel_tol=1e-4, abs_tol=1e-7)


def test_without_ray_the_configuration_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'lorif-curation\[ray\]'"):
        load_config(IndexConfig, CONFIGS / "index.yaml", {"index": {"runner": "ray"}}, [])
