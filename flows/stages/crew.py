"""A stage's work shared by several processes: starts them (`flows.member`), follows and stops them.

They are the ranks of `torchrun` on this machine, or tasks of a Prefect flow on a Ray cluster (`flows.ray_flow`).
"""

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
GRACE_SECONDS = 20.0  # what they get to stop before they are killed


class CrewError(CurationError):
    """The processes could not do it."""


def workers(arguments: Arguments) -> int:
    """How many processes share the work."""
    return int(arguments["index"]["workers"] or arguments["train"]["devices"])


def wanted(arguments: Arguments) -> bool:
    """Whether the work is to be shared, be it with other machines alone."""
    return arguments["index"]["runner"] == "ray" or workers(arguments) > 1


def run(work: str, arguments: Arguments, folder: Path, progress: Progress) -> None:
    """Do the ``work`` (a key of `flows.member.WORKS`) of a stage in its ``folder``.

    Raises:
        CrewError: a process failed, or too many died; their own words are in this process's log.
    """
    count, aside = workers(arguments), tempfile.mkdtemp(prefix="lorif-crew-")
    job = {"work": work, "arguments": dict(arguments), "folder": str(folder), "workers": count}
    file = write_json(folder / "crew.json", {**job, "here": os.getcwd(), "aside": aside})
    environment, command = child_environment(), ["-m", "flows.ray_flow"]
    if arguments["index"]["runner"] != "ray":
        environment["OMP_NUM_THREADS"] = str(max(1, threads_default() // count))
        ranks = ["--standalone", "--nproc-per-node", str(count), "--max-restarts", str(RESTARTS)]
        command = ["-m", "torch.distributed.run", *ranks, "-m", "flows.member"]
    process = subprocess.Popen(
        [sys.executable, *command, str(file)],
        stdin=subprocess.PIPE,  # closed with this process, however it ends: the others then end too
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        encoding="utf-8",
    )
    try:
        for line in cast(TextIO, process.stdout):
            event = json.loads(line)
            if event["event"] == "failed":
                raise CrewError(event["message"])
            progress(event["text"], event["done"], event["total"])
        code = process.wait()
    finally:
        _stop(process)
        file.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
    if code != 0:
        raise CrewError(
            f"processes that shared the work died too often (exit code {code}), as they do when memory runs out: "
            "run it again to go on where they were"
        )


def _stop(process: subprocess.Popen[str]) -> None:
    """End the processes where they still run."""
    with contextlib.suppress(OSError):
        cast(TextIO, process.stdin).close()
    if process.poll() is None:
        logger.info("stopping the processes that share the work (%d of %d)", process.pid, os.getpid())
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    cast(TextIO, process.stdout).close()
