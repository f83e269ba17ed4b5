"""What is left of some records in a workspace is removed: whole results that can be made again, rows of tables, pages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from curation.examples import write_parquet_atomic
from curation.unlearning.searching import Search
from flows.files import digest_file, read_json
from flows.folder import INPUTS
from flows.workspace import remove_stage

DATABASES = (".db", ".db-wal", ".db-shm")
"""Ends of the names of files that are others' to change."""


@dataclass
class Swept:
    """What was removed, and what a search through all the rest came to.

    Attributes:
        stages: folders of stages.
        files: other files, removed whole.
        rows: rows of tables.
        models: checkpoints.
        files_searched: how many, after all that.
        bytes_searched: of how many bytes.
        left: files, inside the workspace, that still hold a trace.
    """

    stages: int = 0
    files: int = 0
    rows: int = 0
    models: int = 0
    files_searched: int = 0
    bytes_searched: int = 0
    left: list[str] = field(default_factory=list)


def sweep(
    workspace: Path,
    search: Search,
    *,
    stages: Collection[str],
    data: str,
    models: Collection[str],
    keep: Collection[Path],
    skip: Collection[Path],
) -> Swept:
    """Remove what is left of some records, and look whether anything is; nobody else may be at work in the workspace.

    Gone are: the results of stages that were made with them or hold them, which can be made again from what there is then;
    models that knew them; their rows in other tables; other files that hold them, such as a page that shows them.

    Args:
        workspace: the folder.
        search: what they are known by.
        stages: folders of stages to remove whatever they hold.
        data: digest of the data with the records; stages made from it go too.
        models: sha256 of the checkpoints to remove.
        keep: files that are not removed or changed.
        skip: files and folders that are not looked at.
    """
    done, home = Swept(), workspace / "stages"
    for folder in sorted(path for path in home.iterdir() if path.is_dir() and path not in skip):
        if folder.name in stages or (read_json(folder / INPUTS) or {}).get("data") == data:
            remove_stage(folder)
            done.stages += 1
    for path in search.folder(workspace, skip).where:
        if home in path.parents:
            folder = home / path.relative_to(home).parts[0]
            if folder.is_dir():
                remove_stage(folder)
                done.stages += 1
        elif path not in keep and not path.name.endswith(DATABASES):
            rows = _without_rows(path, search) if path.suffix == ".parquet" else None
            if rows is None:
                path.unlink()
                done.files += 1
            done.rows += rows or 0
    for path in sorted(workspace.rglob("*.ckpt")):
        if path not in keep and path.is_file() and digest_file(path) in models:
            path.unlink()
            done.models += 1
    found = search.folder(workspace, skip)
    done.files_searched, done.bytes_searched = found.files, found.bytes
    done.left = sorted(path.relative_to(workspace).as_posix() for path in found.where)
    return done


def _without_rows(path: Path, search: Search) -> int | None:
    """Take the rows that hold a trace out of a table; how many, None where it is no table or nothing would be left."""
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError:
        return None
    hits = search.rows(frame)
    if hits.all() or not hits.any():
        return None
    write_parquet_atomic(frame.filter(~hits), path)
    return int(hits.sum())
