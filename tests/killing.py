"""A process that runs functions in children of its own, which can be killed at any moment with all that they have started.

They are forked, so that none imports anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = """
import contextlib, importlib, os, signal, sys, time, traceback
from pathlib import Path
import torch
from tests.killing import children_of
torch.set_num_threads(1)
module = importlib.import_module(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    name, seconds, folder = line.rstrip().split(maxsplit=2)
    child = os.fork()
    if child == 0:
        try:
            module.STEPS[name](Path(folder))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds != "None":
        time.sleep(float(seconds))
        # Stopped first, or it would see its own children die. It is not waited for yet, so its number is still its own.
        os.kill(child, signal.SIGSTOP)
        for process in [*children_of(child), child]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def children_of(pid: int) -> list[int]:
    """Processes that ``pid`` has started, and theirs."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(child) for task in tasks for child in task.read_text().split()]
    return found + [grandchild for child in found for grandchild in children_of(child)]


class Server:
    """Runs the functions in `STEPS` of a module, each given a folder."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def attempt(self, step: str, folder: Path, seconds: float | None) -> bool:
        """Run a step, or kill it after some seconds; whether it was killed."""
        self._process.stdin.write(f"{step} {seconds} {folder}\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code != 0


@contextmanager
def server_of(module: str) -> Iterator[Server]:
    """A server for the length of the block."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, module]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield Server(process)
        process.stdin.close()
