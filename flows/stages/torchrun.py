"""An index built by the ranks of ``torchrun`` on this machine: starts them (`flows.rank`), follows and stops them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO, cast

from curation.errors import CurationError
from flows.environment import child_environment, threads_default
from flows.files import write_json
from flows.stages.common import Arguments, Progress

logger = logging.getLogger(__name__)

RESTARTS = 3
"""How often ranks are started again after one died; each goes on where it was."""
GRACE_SECONDS = 10.0  # what they get to stop before they are killed


class RanksError(CurationError):
    """The ranks could not build the index."""


def fit(arguments: Arguments, index: Path, workers: int, progress: Progress) -> None:
    """Build the index, its curvature included, at ``index`` by ``workers`` ranks.

    Raises:
        RanksError: one failed, or too many died; their own words are in this process's log.
    """
    meeting = tempfile.mkdtemp(prefix="lorif-ranks-")
    contents = {"arguments": dict(arguments), "index": str(index), "meeting": meeting}
    job = write_json(index.with_name("ranks.json"), contents)
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "--max-restarts", str(RESTARTS)]
    environment = child_environment() | {"OMP_NUM_THREADS": str(max(1, threads_default() // workers))}
    process = subprocess.Popen(
        [sys.executable, "-m", *run, "-m", "flows.rank", str(job)],
        stdin=subprocess.PIPE,  # closed with this process, however it ends: the ranks then end too
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        encoding="utf-8",
    )
    failed: list[str] = []
    try:
        for line in cast(TextIO, process.stdout):
            event = json.loads(line)
            if event["event"] == "progress":
                progress(event["text"], event["done"], event["total"])
            else:
                failed.append(event["message"])
        code = process.wait()
    finally:
        _stop(process)
        job.unlink(missing_ok=True)
        shutil.rmtree(meeting)
    if failed:
        raise RanksError(failed[0])
    if code != 0:
        raise RanksError(
            f"ranks of the index died {RESTARTS + 1} times (exit code {code}), as they do when memory runs out: "
            "run it again to go on where they were"
        )


def _stop(process: subprocess.Popen[str]) -> None:
    """End torchrun and its ranks where they still run."""
    with contextlib.suppress(OSError):
        cast(TextIO, process.stdin).close()
    if process.poll() is None:
        logger.info("stopping the ranks (process %d of %d)", process.pid, os.getpid())
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    cast(TextIO, process.stdout).close()
