"""`fit` on two real processes over gloo: one index, the same as by one process, and no rank is ever left waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from lorif_core import LoRIF, verify
from lorif_core import store as store_module
from tests.lorif_core.test_store import examples, files, fitted, loader, network

ROOT = Path(__file__).parents[2]
SHARD_BYTES = 330
# Every rank: its number, the folder, what goes wrong on rank 1.
RANK = """
import sys, time, torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from lorif_core import Classification, LoRIF, store
from lorif_core.shared_queries import score_on_all_ranks, top_k_on_all_ranks
from lorif_core.shared_rows import self_influence_on_all_ranks
from tests.lorif_core.test_store import examples, loader, network
rank, folder, trouble = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
store.SHARD_BYTES = {shard_bytes}
dist.init_process_group("gloo", init_method="file://" + sys.argv[4], rank=rank, world_size=2)
class Rows:
    def __len__(self): return 203
    def __getitem__(self, i):
        if trouble == "slow" and rank == 1 and i > 130: time.sleep(0.05)
        if trouble == "raises" and rank == 1 and i > 130: raise OSError("the disk of rank 1 is gone")
        return examples()[i]
where = folder + str(rank) if trouble == "paths" else folder
attributor = LoRIF(network(), Classification(), projection="pca", projection_factor=2)
attributor.fit(DataLoader(Rows(), 8), where)
queries = DataLoader(examples(9), 4)
found = score_on_all_ranks(attributor, queries), top_k_on_all_ranks(attributor, queries, 5)
own = self_influence_on_all_ranks(attributor)
torch.save([attributor.score(queries), own, found[0], *found[1]], f"{{folder}}.{{rank}}.pt")
dist.destroy_process_group()
"""


def start(folder: Path, trouble: str = "none") -> list[subprocess.Popen[str]]:
    meeting = folder.with_suffix(".meeting")
    meeting.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = RANK.format(shard_bytes=SHARD_BYTES)
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(folder), trouble, str(meeting)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and last line of standard error of each rank."""
    ended = [(process.communicate(timeout=90)[1], process.returncode) for process in processes]
    return [(code, (text.strip().splitlines() or [""])[-1]) for text, code in ended]


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoRIF:
    monkeypatch.setattr(store_module, "SHARD_BYTES", SHARD_BYTES)
    return fitted(tmp_path / "whole", projection="pca", projection_factor=2)


def test_two_ranks_make_the_index_of_one_process(tmp_path: Path, whole: LoRIF) -> None:
    assert finish(start(tmp_path / "ranks")) == [(0, ""), (0, "")]
    assert files(tmp_path / "ranks") == files(tmp_path / "whole")
    assert verify(tmp_path / "ranks", network(), loader()) == []
    for rank in range(2):
        own, influence, shared, *best = torch.load(tmp_path / f"ranks.{rank}.pt")
        scores = whole.score(DataLoader(examples(9), 4))
        assert torch.equal(own, scores)
        assert torch.equal(influence, whole.self_influence())
        torch.testing.assert_close(shared, scores, rtol=1e-5, atol=1e-7)
        assert torch.equal(best[0], scores.topk(5).indices)
        torch.testing.assert_close(best[1], scores.topk(5).values, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_rank_killed_in_the_middle_and_all_started_again(tmp_path: Path, whole: LoRIF) -> None:
    processes = start(tmp_path / "ranks", "slow")
    manifest = tmp_path / "ranks" / "parts" / "1-of-2" / "manifest.json"
    shard, deadline = manifest.parent / "shards" / "00002.safetensors", time.monotonic() + 60
    while not shard.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    (code, said), (killed, _) = finish(processes)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "another rank was lost" in said and "run it again with 2 ranks" in said
    assert finish(start(tmp_path / "ranks")) == [(0, ""), (0, "")]
    assert files(tmp_path / "ranks") == files(tmp_path / "whole")


def test_a_failure_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    (first, said), (second, own) = finish(start(tmp_path / "ranks", "raises"))
    assert (first, second) == (1, 1)
    assert own.endswith("OSError: the disk of rank 1 is gone")
    assert said.endswith("StoreError: rank 1 failed: OSError: the disk of rank 1 is gone")


@pytest.mark.slow
def test_ranks_given_different_folders_say_so(tmp_path: Path) -> None:
    for code, said in finish(start(tmp_path / "ranks", "paths")):
        assert code == 1 and "the same path on every rank" in said
