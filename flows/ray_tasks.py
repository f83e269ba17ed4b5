"""What a Prefect task on a Ray cluster does (`flows.ray_flow`): one share of a step, in a process of its own.

A process that runs Prefect tasks cannot fork, as data loaders do ("DataLoader worker exited unexpectedly"); and memory that
runs out takes the share's process, not Ray's worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO, cast

from curation.errors import CurationError
from flows import environment

RETRIES = 5
"""How often a share is done again after its process, or its worker, died."""


class ShareLost(CurationError):
    """The process of a share died: it can be done again."""


class ShareFailed(CurationError):
    """A share cannot be done: what its process said."""


def share(file: str, number: int, worker: int) -> None:
    """One worker's share of a step, in a process of its own.

    Raises:
        ShareLost: the process died.
        ShareFailed: it said why it failed, or does not see the job.
    """
    if not Path(file).is_file():
        raise ShareFailed(
            f"{file} is not there on {os.uname().nodename}: every machine of the cluster must see the workspace"
        )
    variables = environment.child_environment()
    variables["PYTHONPATH"] = os.pathsep.join(place for place in sys.path if place)  # what Ray made this process find
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.member", file, str(number), str(worker)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables,
        text=True,
        encoding="utf-8",
    )
    with process:
        events = [json.loads(line) for line in cast(TextIO, process.stdout)]
        process.wait()  # before its standard input is closed, by which it would know that this process is gone
    failed = [event["message"] for event in events if event["event"] == "failed"]
    if failed:
        raise ShareFailed(failed[0])
    if process.returncode != 0:
        raise ShareLost(f"the process of share {worker} died (exit code {process.returncode})")


def was_lost(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a share may be done again: its process died, it did not fail."""
    return isinstance(state.data, ShareLost)
