"""A Prefect API of this tool's own, for as long as its process lives, where the user has not configured one.

Prefect would start one itself, but in the terminal's process group: Ctrl-C ends it first, and the flow then waits minutes
for an API that is gone. This one leads its own session, and ends when its parent does, however that ends.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from flows.errors import StageError

START_SECONDS = 120.0


class Server:
    """A Prefect API in a process of its own.

    Attributes:
        url: the API's address.
    """

    def __init__(self, log: Path, port: int | None = None, *, scheduler: bool = False) -> None:
        """Start it, without waiting until it answers.

        Args:
            log: file for what it prints.
            port: where; any free port by default.
            scheduler: start the services that schedules need, and the page.
        """
        self._log = log
        port = port or _free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        arguments = ["--port", str(port), *(["--scheduler"] if scheduler else [])]
        environment = {**os.environ, "PREFECT_API_URL": self.url, "PREFECT_SERVER_API_PORT": str(port)}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.prefect_server", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        # Prefect sends the last states of a flow when the interpreter ends; the server must still be there then.
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return once it answers.

        Raises:
            StageError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.url):
            if self.ended:
                raise StageError("start", "Prefect's server ended while it started.", self._log)
            if time.monotonic() > deadline:
                raise StageError("start", f"Prefect's server did not answer in {START_SECONDS:.0f} s.", self._log)
            time.sleep(0.1)

    @property
    def ended(self) -> bool:
        """Whether its process has."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it and wait for that."""
        if not self.ended:
            self._process.terminate()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


_own: list[Server] = []
_starting = threading.Lock()


def own_server(log: Path) -> Server:
    """The one that all runs of this process share, started by the first of them, and anew where it has ended.

    Args:
        log: file for what it prints, if it is started now.
    """
    with _starting:  # runs of two threads start one
        if not _own or _own[-1].ended:
            _own[:] = [Server(log)]
        return _own[-1]


def answers(url: str) -> bool:
    """Whether a Prefect API answers at ``url``."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """The server's process: serve until it is told to end, or its standard input is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--scheduler", action="store_true")
    options = parser.parse_args()
    if not options.scheduler:
        os.environ["PREFECT_UI_ENABLED"] = "false"

    def follow_parent() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=follow_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=not options.scheduler, final=True)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main()
