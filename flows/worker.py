"""The parent's side of a stage process: start it early, give it a job, follow its events, stop it."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from flows.environment import child_environment
from flows.errors import InputError, StageError

Progress = Callable[[str, int, int | None], None]
GRACE_SECONDS = 20.0  # what a stage gets to stop after Ctrl-C before it is killed


class Worker:
    """One stage process (`flows.stage`), importing what it needs from the moment it is created.

    The process leads its own session: Ctrl-C in a terminal reaches the parent only, which passes it on and waits.
    """

    def __init__(self) -> None:
        # What it says before its first job; afterwards it writes to the job's log.
        self._early = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process lives
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flows.stage"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._early,
            env=child_environment(),
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        self._jobs = cast(TextIO, self._process.stdin)
        self._lines = cast(TextIO, self._process.stdout)
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process can take another job."""
        return self._process.poll() is None

    def run(self, stage: str, job_file: Path, log: Path, progress: Progress) -> Path:
        """Run the job in ``job_file`` and wait for it.

        Returns:
            The manifest the stage has written.

        Raises:
            InputError: the stage refused its data or model.
            StageError: it failed, or its process died.
            KeyboardInterrupt: Ctrl-C here; the process was told and has ended.
        """
        try:
            with contextlib.suppress(BrokenPipeError):  # it died while waiting; the events below tell how
                self._jobs.write(f"{job_file}\n")
                self._jobs.flush()
            for event in self._follow():
                if event["event"] == "progress":
                    progress(event["text"], event["done"], event["total"])
                elif event["event"] == "done":
                    return Path(event["manifest"])
                elif event["event"] == "failed":
                    raise self._failure(stage, event, log)
        except KeyboardInterrupt:
            self.stop(signal.SIGINT)
            raise
        raise StageError(stage, self._death(), log if log.is_file() else None)

    def close(self) -> None:
        """Let the process end now that no job is left, without waiting for it."""
        with contextlib.suppress(OSError):
            self._jobs.close()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send ``how``, wait, and kill what is still there after the grace period."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(how)
        self.close()
        deadline = time.monotonic() + GRACE_SECONDS
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            try:
                self._process.wait(timeout=0.2)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                continue  # a second Ctrl-C must not leave it behind
        self._early.close()

    def _read(self) -> None:
        for line in self._lines:
            self._events.put(json.loads(line))
        self._events.put(None)

    def _follow(self) -> Iterator[dict[str, Any]]:
        """Events until the process ends; waits in short steps, so that Ctrl-C is heard at once."""
        while True:
            try:
                event = self._events.get(timeout=0.2)
            except queue.Empty:
                if not self._reader.is_alive():
                    return
                continue
            if event is None:
                return
            yield event

    def _failure(self, stage: str, event: dict[str, Any], log: Path) -> BaseException:
        if event["kind"] == "input":
            return InputError(event["message"])
        if event["kind"] == "interrupted":
            return KeyboardInterrupt()
        return StageError(stage, event["message"], log)

    def _death(self) -> str:
        """How the process ended without a word, for a person."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed (signal 9), as the system does when memory runs out."
        if code < 0:
            return f"its process died of signal {-code} ({signal.Signals(-code).name})."
        self._early.seek(0)
        lines = self._early.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process ended with exit code {code}" + (f": {lines[-1]}" if lines else ".")
