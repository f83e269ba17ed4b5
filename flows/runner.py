"""Runs stages in child processes and keeps what they made: a finished stage of the same inputs is never run again.

A stage's folder is WORKSPACE/stages/STAGE-DIGEST16, the digest being of everything its result depends on. The folder
counts as finished once it holds a manifest (`flows.folder`); without it the stage goes on where it was. A folder with a
damaged file is thrown away, and the stage run again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from flows.files import digest_of, write_json
from flows.folder import INPUTS, JOB, LOG, MANIFEST, USED, Damaged, read_manifest
from flows.screen import Screen
from flows.worker import Worker


@dataclass(frozen=True)
class Finished:
    """A finished stage: small figures here, everything large by path.

    Attributes:
        stage: its name.
        folder: where its files are.
        digest: hex digest of its inputs, and so a name for its result.
        values: its small results, plain JSON.
        files: name -> path.
        seconds: what it took when it ran.
        reused: it was finished before this run.
    """

    stage: str
    folder: Path
    digest: str
    values: dict[str, Any]
    files: dict[str, Path]
    seconds: float
    reused: bool


@dataclass
class Runner:
    """Stages of one run. Use it as a context manager: it leaves no process behind.

    Attributes:
        workspace: the workspace folder.
        root: where own classes are imported from.
        code: digest of the code that computes stages.
        screen: draws progress.
    """

    workspace: Path
    root: Path
    code: str
    screen: Screen
    _current: Worker | None = None
    _next: Worker | None = None
    _used: list[Worker] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (self._current, self._next, *self._used):
            if worker is not None:
                worker.stop()
        self._current = self._next = None

    def warm_up(self) -> None:
        """Start a process that a later stage will need."""
        if self._next is None:
            self._next = Worker()

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Finished | None:
        """The finished stage of these inputs, if there is one and every byte of its files is as it was written."""
        digest = self._digest(stage, inputs)
        folder = self._folder(stage, digest)
        try:
            manifest = read_manifest(folder, digest)
        except Damaged as damage:
            self.screen.line(f"warning: {damage}; it counts as not there")
            return None
        return None if manifest is None else _finished(folder, manifest, reused=True)

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        arguments: Mapping[str, Any],
        *,
        fresh: bool = False,
        keep: bool = True,
        title: str | None = None,
    ) -> Finished:
        """Run ``stage``, or take its result when a run with the same inputs has finished it.

        Args:
            stage: a name in `flows.stages.STAGES`.
            inputs: everything the result depends on, as JSON; its digest names the result.
            arguments: what the stage gets, as JSON.
            fresh: in a new process, so that all memory of the stages before (a GPU's too) is free.
            keep: False runs it every time.
            title: what the screen calls it; its name by default.

        Raises:
            InputError: the stage refused its input.
            StageError: it failed; its log says more.
            KeyboardInterrupt: Ctrl-C; the process has ended.
        """
        self.screen.begin(title or stage)
        digest = self._digest(stage, inputs)
        folder = self._folder(stage, digest)
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock(folder):
            if keep and (manifest := self._kept(folder, digest)) is not None:
                (folder / USED).touch()
                self.screen.end("finished before, reused")
                return _finished(folder, manifest, reused=True)
            (folder / MANIFEST).unlink(missing_ok=True)
            job = {
                "stage": stage,
                "folder": str(folder),
                "digest": digest,
                "root": str(self.root),
                "log": str(folder / LOG),
                "arguments": dict(arguments),
            }
            write_json(folder / INPUTS, dict(inputs))
            job_file = write_json(folder / JOB, job)
            worker = self._worker(fresh)
            manifest_file = worker.run(title or stage, job_file, folder / LOG, self.screen.progress)
            finished = _finished(folder, json.loads(manifest_file.read_text(encoding="utf-8")), reused=False)
            (folder / USED).touch()
        self.screen.end("done", finished.seconds)
        return finished

    def _kept(self, folder: Path, digest: str) -> dict[str, Any] | None:
        """The manifest of the stage finished in ``folder``; a damaged folder is emptied."""
        try:
            return read_manifest(folder, digest, self.screen.progress)
        except Damaged as damage:
            self.screen.line(f"warning: {damage}; running the stage again")
            shutil.rmtree(folder)
            folder.mkdir()
            return None

    def _worker(self, fresh: bool) -> Worker:
        """The process for the next job; with ``fresh`` the one before is let go."""
        if self._current is not None and (fresh or not self._current.alive):
            self._current.close()
            self._used.append(self._current)
            self._current = None
        if self._current is None:
            self._current, self._next = self._next or Worker(), None
        return self._current

    def _digest(self, stage: str, inputs: Mapping[str, Any]) -> str:
        return digest_of({"stage": stage, "code": self.code, "inputs": dict(inputs)})

    def _folder(self, stage: str, digest: str) -> Path:
        return self.workspace / "stages" / f"{stage}-{digest[:16]}"

    @contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        """Hold the folder's lock; another run computing the same stage is waited for."""
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.screen.line(f"another run is computing {folder.name}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _finished(folder: Path, manifest: Mapping[str, Any], *, reused: bool) -> Finished:
    return Finished(
        stage=manifest["stage"],
        folder=folder,
        digest=manifest["digest"],
        values=manifest["values"],
        files={name: folder / path for name, path in manifest["files"].items()},
        seconds=manifest["seconds"],
        reused=reused,
    )
