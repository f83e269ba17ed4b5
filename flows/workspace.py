"""The workspace as a whole: runs hold it while they work, and `curate workspace prune` frees what none has used for long."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console

from flows.errors import ConfigError
from flows.folder import USED

DAY = 24 * 3600.0
_STAGE = re.compile(r"[a-z]+-[0-9a-f]{16}")


def hold(workspace: Path) -> IO[bytes]:
    """Keep the stages of ``workspace`` from being pruned until the file returned is closed; any number of runs may.

    The system lets go of it when the process ends, however that happens.
    """
    file = (workspace / ".lock").open("ab")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


@contextmanager
def alone(held: IO[bytes], tell: Callable[[str], None]) -> Iterator[None]:
    """Be the only run in a workspace for the length of the block; others are waited for.

    Args:
        held: what `hold` gave.
        tell: called with a sentence where there is something to wait for.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell("other runs are at work in this workspace: waiting for them to end")
        fcntl.flock(held, fcntl.LOCK_EX)  # lets go of the shared lock first: two that wait do not wait for each other
    try:
        yield
    finally:
        fcntl.flock(held, fcntl.LOCK_SH)


def remove_stage(folder: Path) -> None:
    """Remove the folder of a stage that nobody is using."""
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.with_suffix(".lock").unlink(missing_ok=True)


def note_use(path: Path) -> None:
    """Note that the stage folder that ``path`` is or lies in was used, where there is one.

    A run may be given an older result, or have nothing to do because its own is there.
    """
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.parent.name == "stages" and _STAGE.fullmatch(folder.name) and folder.is_dir():
            (folder / USED).touch()


def prune(options: argparse.Namespace, tokens: list[str]) -> int:
    """Delete the stage folders that no run has used for ``keep_days``, and what select noted of them; ``dry_run`` only tells.

    Raises:
        ConfigError: there is no workspace, or a run is at work in it.
    """
    from flows import growth  # imports polars

    workspace = Path(os.path.abspath(os.path.expanduser(options.workspace)))
    problems = [f"unknown arguments: {' '.join(tokens)}"] if tokens else []
    if options.keep_days < 0:
        problems.append(f"--keep-days: expected a number from 0, got {options.keep_days:g}")
    if not (workspace / "stages").is_dir():
        problems.append(f"--workspace: {workspace} holds no stages: it is no workspace, or nothing has run in it yet")
    if problems:
        raise ConfigError(problems)
    console, freed = Console(highlight=False, markup=False, soft_wrap=True), 0
    with (workspace / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--workspace: a run is at work in {workspace}: prune it when that has ended") from None
        unused = list(_unused(workspace / "stages", options.keep_days))
        for folder, days in unused:
            size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
            freed += size
            console.print(f"{folder.name}  {size / 1e6:,.1f} MB, last used {days:.0f} days ago")
            if not options.dry_run:
                remove_stage(folder)
        states, size = growth.prune(workspace, {folder.name for folder, _ in unused}, dry_run=options.dry_run)
        freed += size
    verb = "would be freed" if options.dry_run else "freed"
    pools = f"{states} states of pools, " if states else ""
    console.print(f"{len(unused)} stages, {pools}{freed / 1e6:,.1f} MB {verb} in {workspace}")
    return 0


def _unused(stages: Path, keep_days: float) -> Iterator[tuple[Path, float]]:
    """The folders of stages not used for ``keep_days``, with the days since."""
    for folder in sorted(stages.iterdir()):
        if _STAGE.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            # Whatever was written last: the note of a use, or what an unfinished stage has got to.
            days = (time.time() - max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))) / DAY
            if days >= keep_days:
                yield folder, days
