"""Stage grow: the index of a pool that grew, from that of its earlier state: only the new rows are run through the model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flows.stages import appending
from flows.stages.common import Arguments, Output, Progress
from lorif_core.kept import REFIT_SHARE
from lorif_core.updates import refit


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Add the rows that the index at ``base`` does not have to a copy of it; killed, it goes on where it stopped.

    Files of an index are never written over, so the copy is of hard links where the file system has them. The curvature is fitted
    anew where what was added has made it drift.

    Returns:
        ``values``: ``rows`` and ``added``, ``refitted``; file ``manifest`` of the index in ``index/``.
    """
    target = folder / "index"
    if not target.is_dir():
        aside = folder / ".index"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(arguments["base"], aside, copy_function=_link)
        aside.rename(target)
    appended = appending.run({**arguments, "index_path": str(target)}, folder, progress)
    drifted = appended.values["drift"] > REFIT_SHARE
    if drifted:
        refit(target, progress=progress, memory_limit=arguments["index"]["memory_limit"])
    values = {"rows": appended.values["rows"], "added": appended.values["added"], "refitted": drifted}
    return Output(values, {"manifest": "index/manifest.json"})


def _link(source: str, target: str) -> str:
    """A hard link, or a copy where there cannot be one."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target
