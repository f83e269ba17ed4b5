"""The folder of a run's results: whose it is, whether it can be written, and whether it is complete.

``run.json`` names the run (its ``digest`` is of the configuration, the data and the model) and, once everything lies
there, the results with their digests. A folder with anything else in it is never written to.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.errors import ConfigError
from flows.files import digest_file, read_json, write_json

RUN = "run.json"
LOCK = ".lock"
SUMMARY = "summary.json"


def check_writable(folder: Path, key: str) -> None:
    """Create ``folder`` if need be and write to it once.

    Raises:
        ConfigError: it cannot be, with the reason; ``key`` is the option that names it.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
            probe.flush()
    except OSError as error:
        raise ConfigError(f"{key}: {folder} cannot be written: {error.strerror}") from None
    finally:
        if made and folder.is_dir() and not os.listdir(folder):
            folder.rmdir()


def check_free(folder: Path, key: str) -> None:
    """Refuse a folder that holds something that is not a run of this tool.

    Raises:
        ConfigError: it holds foreign files, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{key}: {folder} is a file, expected a folder")
    if not folder.is_dir() or (folder / RUN).is_file():
        return
    foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ConfigError(
            f"{key}: {folder} holds files of something else ({shown}) and no {RUN}: name a new or empty folder"
        )


class RunFolder:
    """The results of one run.

    Attributes:
        path: the folder.
        digest: what the run is of.
    """

    def __init__(self, path: Path, digest: str, key: str) -> None:
        """Look at the folder; nothing is written yet.

        Raises:
            ConfigError: it holds another run, or foreign files; ``key`` is the option that names it.
        """
        self.path, self.digest = path, digest
        self._lock = FileLock(path / LOCK)
        check_free(path, key)
        self._found = read_json(path / RUN) or {}
        held = self._found.get("digest")
        if held is not None and held != digest:
            raise ConfigError(
                f"{key}: {path} holds another run ({self._found.get('name')}, started {self._found.get('started')}; "
                "its configuration, data or model differ): name another folder, or leave the option out"
            )

    @property
    def mlflow_run_id(self) -> str | None:
        """The MLflow run that an earlier, unfinished start of this run recorded to."""
        return self._found.get("mlflow_run_id")

    @property
    def running(self) -> bool:
        """Whether this run took the folder and has not ended."""
        return self._lock.is_locked

    def finished(self, code: str, tell: Callable[[str], None]) -> dict[str, Any] | None:
        """The summary, when all results of this run by this code are there as they were written.

        Args:
            code: digest of the code that computes results.
            tell: called with a sentence that names a result that is missing or damaged.
        """
        if self._found.get("status") != "finished" or self._found.get("code") != code:
            return None
        for name, sha256 in self._found["sha256"].items():
            file = self.path / name
            if not file.is_file() or digest_file(file) != sha256:
                tell(f"warning: {file} is missing or not as it was written; making the results again")
                return None
        return read_json(self.path / SUMMARY)

    @property
    def recorded(self) -> dict[str, Any]:
        """Where and how the finished run was recorded, as `end` was told."""
        return dict(self._found.get("recorded", {}))

    @property
    def results(self) -> list[str]:
        """The files that the finished run consists of, as `end` was told."""
        return list(self._found.get("sha256", {}))

    @property
    def stages(self) -> list[str]:
        """The folders of the stages that the finished run was made of, inside the workspace, as `end` was told."""
        return list(self._found.get("stages", []))

    def take(self) -> str | None:
        """Take the folder for this process.

        Returns:
            The Prefect run that an earlier start of this run left running, as one that was killed does.

        Raises:
            ConfigError: it cannot be written, or another process is at work on the same run.
        """
        check_writable(self.path, "output_dir")
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"output_dir: another process is at work on {self.path}: wait for it to end") from None
        return self._found.get("flow_run_id") if self._found.get("status") == "running" else None

    def begin(self, entries: Mapping[str, Any]) -> None:
        """Write ``run.json`` with status running; the folder was taken."""
        self._found = {**entries, "digest": self.digest, "status": "running"}
        write_json(self.path / RUN, self._found)

    def end(self, code: str, results: Sequence[str], recorded: Mapping[str, Any], stages: Sequence[str]) -> None:
        """Mark the run finished: the files it consists of, where and how it is recorded, the stages it was made of."""
        digests = {name: digest_file(self.path / name) for name in results}
        self._found |= {"status": "finished", "code": code, "sha256": digests, "recorded": dict(recorded)}
        self._found["stages"] = list(stages)
        write_json(self.path / RUN, self._found)
        self._lock.release()

    def fail(self, status: str) -> None:
        """Note that the run stopped (``failed`` or ``interrupted``); the same command goes on."""
        self._found = {**self._found, "status": status}
        write_json(self.path / RUN, self._found)
        self._lock.release()
