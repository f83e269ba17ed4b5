"""The process in which stages run: ``python -m flows.stage`` takes job files, one a line, on its standard input.

Started before it is needed, it has done its slow imports when the first job comes. It speaks to its parent in JSON
lines on its standard output (``ready``, ``progress``, ``done``, ``failed``); whatever a library prints goes to the
job's log file. When its parent is gone, so is it: a stage can be stopped at any moment and goes on from there.

``python -m flows.stage JOB.json`` runs one job, as the further processes of a distributed training do.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

INTERRUPTED = 130
PACKAGES = ("lorif_core", "curation", "flows")
"""Whose own words are kept."""


def main(arguments: list[str] | None = None) -> int:
    """Run the job named in ``arguments``, or all that come on standard input until it is closed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # A terminal sends Ctrl-C to the whole process group; the parent decides when this process is to stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8"), silent=os.environ.get("LOCAL_RANK", "0") != "0")
    os.dup2(2, 1)
    keep_log()
    try:
        if arguments:
            return _run(Path(arguments[0]), events)
        jobs = _Jobs()
        import flows.stages  # noqa: F401  the slow imports

        events.send(event="ready")
        while (job := jobs.next()) is not None:
            sys.argv[1:] = [job]  # what a distributed training starts its other processes with
            _run(Path(job), events)
            jobs.finished()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def keep_log() -> None:
    """Write to standard error, and so to the job's log file, what the engine chose, how often it read, how long it took."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)


class Events:
    """JSON lines to the parent."""

    def __init__(self, stream: TextIO, *, silent: bool) -> None:
        self._stream = stream
        self._silent = silent
        self._last = 0.0

    def send(self, **event: Any) -> None:
        """One event, whatever it says."""
        if not self._silent:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()

    def progress(self, text: str, done: int, total: int | None) -> None:
        """How far it is, at most ten times a second."""
        now = time.monotonic()
        if done == total or now - self._last > 0.1:
            self._last = now
            self.send(event="progress", text=text, done=done, total=total)


class _Jobs:
    """Job files from standard input; its end during a job means that the parent died, and ends this process."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._busy = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> str | None:
        while True:  # a blocking get would hold back Ctrl-C
            try:
                line = self._lines.get(timeout=0.2)
            except queue.Empty:
                continue
            return line

    def finished(self) -> None:
        self._busy.clear()

    def _read(self) -> None:
        for line in sys.stdin:
            self._busy.set()
            self._lines.put(line.strip())
        if self._busy.is_set():
            os._exit(INTERRUPTED)
        self._lines.put(None)


def _run(job_file: Path, events: Events) -> int:
    """Run one job with its output in its log file; report how it ended."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    with Path(job["log"]).open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        manifest = execute(job, events.progress)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        events.send(event="failed", kind="interrupted", message="interrupted")
        raise KeyboardInterrupt from None
    except BaseException as error:  # noqa: BLE001  whatever went wrong, the parent must hear of it
        with contextlib.suppress(OSError):  # a full disk must not hide the error it caused
            traceback.print_exc()
            sys.stderr.flush()
        events.send(event="failed", kind=_kind(error), message=message_of(error))
        return 1
    events.send(event="done", manifest=str(manifest))
    return 0


def execute(job: dict[str, Any], progress: Callable[[str, int, int | None], None]) -> Path:
    """Run the job's stage in its folder and write ``manifest.json`` there, last.

    Args:
        job: ``stage``, ``folder``, ``digest``, ``root`` (where own classes are imported from), ``arguments``.
        progress: called with what is counted, how many are done and of how many (None when not known).

    Returns:
        The manifest's path.
    """
    from flows.folder import write_manifest
    from flows.stages import STAGES

    for place in (os.getcwd(), job["root"]):
        if place not in sys.path:
            sys.path.insert(0, place)
    folder = Path(job["folder"])
    start = time.monotonic()
    output = STAGES[job["stage"]](job["arguments"], folder, progress)
    result = {
        "stage": job["stage"],
        "digest": job["digest"],
        "values": output.values,
        "files": output.files,
        "seconds": round(time.monotonic() - start, 3),
    }
    manifest = write_manifest(folder, result, spent=output.spent)
    for path in output.spent:
        (folder / path).unlink(missing_ok=True)
    return manifest


def _kind(error: BaseException) -> str:
    """Whether the user's input is to blame (``input``) or the stage failed."""
    from curation.errors import DataError, ModelError

    return "input" if isinstance(error, (DataError, ModelError)) else "failed"


def message_of(error: BaseException) -> str:
    """The error for a person: its own text when it was raised on purpose, else its type too."""
    from curation.errors import CurationError

    if isinstance(error, CurationError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
