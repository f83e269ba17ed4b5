"""What is left of some records in a workspace is removed: whole results that can be made again, rows of tables, pages."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from curation.examples import write_parquet_atomic
from curation.unlearning.searching import Search
from flows.files import digest_file, digest_of, read_json
from flows.folder import INPUTS
from flows.workspace import remove_stage

DATABASES = (".db", ".db-wal", ".db-shm")
"""Ends of the names of files that are others' to change."""


STAGES, FILES, ROWS, MODELS = "stages", "files", "rows", "models"
"""Kinds of what is removed."""


@dataclass
class Tally:
    """What is removed, noted before it is: whoever goes on where a purge was killed counts all of it, and all of it once.

    Attributes:
        counts: kind -> digest of the name of each thing (a name may tell of a record) -> how many it counts for.
        keep: writes them down.
    """

    counts: dict[str, dict[str, int]]
    keep: Callable[[], object]

    def note(self, kind: str, name: str, count: int = 1) -> None:
        """Before something is removed; what it had counted for when that was begun before stands."""
        noted, key = self.counts.setdefault(kind, {}), digest_of(name)
        if noted.get(key, 0) < count:
            noted[key] = count
            self.keep()

    def has(self, kind: str, name: str) -> bool:
        """Whether its removal was begun."""
        return digest_of(name) in self.counts.get(kind, {})

    def total(self, kind: str) -> int:
        """Of all starts together."""
        return sum(self.counts.get(kind, {}).values())


@dataclass(frozen=True)
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

    stages: int
    files: int
    rows: int
    models: int
    files_searched: int
    bytes_searched: int
    left: list[str]


def sweep(
    workspace: Path,
    search: Search,
    *,
    stages: Collection[str],
    data: str,
    models: Collection[str],
    files: Collection[Path],
    keep: Collection[Path],
    skip: Collection[Path],
    tally: Tally,
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
        files: to remove whatever they hold.
        keep: files that are not removed or changed.
        skip: files and folders that are not looked at.
        tally: of what earlier starts of the same purge have removed.
    """
    home = workspace / "stages"

    def remove(folder: Path) -> None:
        tally.note(STAGES, folder.name)
        remove_stage(folder)

    for folder in sorted(path for path in home.iterdir() if path.is_dir() and path not in skip):
        begun = tally.has(STAGES, folder.name)  # what says what it was made of may be gone already
        if begun or folder.name in stages or (read_json(folder / INPUTS) or {}).get("data") == data:
            remove(folder)
    for path in sorted(set(files) - set(keep)):
        if path.is_file():  # its folder may be gone
            tally.note(FILES, str(path))
            path.unlink()
    for path in search.folder(workspace, skip).where:
        if home in path.parents:
            folder = home / path.relative_to(home).parts[0]
            if folder.is_dir():
                remove(folder)
        elif path not in keep and not path.name.endswith(DATABASES):
            table = search.table(path) if path.suffix == ".parquet" else None
            if table is None or table[1].all() or not table[1].any():
                tally.note(FILES, str(path))
                path.unlink()
            else:
                frame, hits = table
                tally.note(ROWS, str(path), int(hits.sum()))
                write_parquet_atomic(frame.filter(~hits), path)
    for path in sorted(workspace.rglob("*.ckpt")):
        if path not in keep and path.is_file() and digest_file(path) in models:
            tally.note(MODELS, str(path))
            path.unlink()
    found = search.folder(workspace, skip)
    left = sorted(path.relative_to(workspace).as_posix() for path in found.where)
    totals = {kind: tally.total(kind) for kind in (STAGES, FILES, ROWS, MODELS)}
    return Swept(**totals, files_searched=found.files, bytes_searched=found.bytes, left=left)
