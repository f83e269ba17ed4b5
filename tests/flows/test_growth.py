from __future__ import annotations

from pathlib import Path

import polars as pl

from flows.growth import Pools, prune


def test_pools_of_jobs_with_dots_in_their_names_have_locks_of_their_own(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    pl.DataFrame({"example_id": ["a"], "content": ["x"]}).write_parquet(rows)
    pools = [Pools(tmp_path, name, {}, print) for name in ("texts.1", "texts.2")]
    for pool in pools:
        pool.add("0" * 64, rows, None, [], [])
    locks = [pool.folder.parent / f"{pool.folder.name}.lock" for pool in pools]
    assert all(lock.is_file() for lock in locks)
    assert prune(tmp_path, set(), dry_run=True)[0] == 2 and all(lock.is_file() for lock in locks)
    assert prune(tmp_path, set(), dry_run=False)[0] == 2  # states of no stages are of no use
    assert list((tmp_path / "pools").iterdir()) == []
