"""The folder of a run's results: whose it is, whether it can be written, and whether it is complete.

``run.json`` names the run (its ``digest`` is of the configuration, the data and the model) and, once everything lies
there, the results with their sizes. A folder with anything else in it is never written to.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.errors import ConfigError
from flows.files import digest_file, read_json, write_json

RUN = "run.json"
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
        self._taken = False
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
        return self._taken

    def finished(self, code: str) -> dict[str, Any] | None:
        """The summary, when all results of this run by this code are there and untouched in size."""
        if self._found.get("status") != "finished" or self._found.get("code") != code:
            return None
        for name, size in self._found.get("results", {}).items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size:
                return None
        return read_json(self.path / SUMMARY)

    def begin(self, entries: Mapping[str, Any]) -> None:
        """Take the folder: write ``run.json`` with status running."""
        check_writable(self.path, "output_dir")
        self._found = {**entries, "digest": self.digest, "status": "running"}
        write_json(self.path / RUN, self._found)
        self._taken = True

    def end(self, code: str, results: Sequence[str]) -> None:
        """Mark the run finished, with the files it consists of."""
        sizes = {name: (self.path / name).stat().st_size for name in results}
        digests = {name: digest_file(self.path / name) for name in results}
        self._found = {**self._found, "status": "finished", "code": code, "results": sizes, "sha256": digests}
        write_json(self.path / RUN, self._found)
        self._taken = False

    def fail(self, status: str) -> None:
        """Note that the run stopped (``failed`` or ``interrupted``); the same command goes on."""
        self._found = {**self._found, "status": status}
        write_json(self.path / RUN, self._found)
