"""MLflow and Prefect, started while something else is computed: their imports and first connections take seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import StageError
from flows.prefect_server import Server, own_server
from flows.schema import TrackingSection
from flows.tracking import Tracker

if TYPE_CHECKING:
    from flows.recorded import RecordedRun

logger = logging.getLogger(__name__)


class Services:
    """What a run needs beside its stages.

    Both import SQLAlchemy, FastAPI and more; two threads that import these at once fail, so a lock keeps them apart.
    """

    def __init__(self, section: TrackingSection, workspace: Path) -> None:
        self._section, self._workspace = section, workspace
        self._lock = threading.Lock()
        self._tracker: Tracker | None = None
        self._api: str | None = None
        self._server: Server | None = None

    def start(self) -> None:
        """Begin starting both in the background; what fails there fails again, and is told, when it is needed."""

        def both() -> None:
            with self._lock:
                try:
                    self._find_api()
                    self._connected()
                except Exception:  # noqa: BLE001
                    logger.debug("a service did not start", exc_info=True)

        threading.Thread(target=both, daemon=True).start()

    @property
    def tracker(self) -> Tracker:
        """MLflow, connected.

        Raises:
            ConfigError: it cannot be reached.
        """
        with self._lock:
            return self._connected()

    def run_flow(self, run: RecordedRun, on_start: Callable[[], None]) -> dict[str, Any]:
        """Run the Prefect flow on what ``run`` has prepared; ``on_start`` is called when Prefect has started it.

        Raises:
            StageError: no Prefect API answers.
        """
        with self._lock:
            api = self._find_api()
            import httpx
            from prefect.client.orchestration import get_client
            from prefect.settings import PREFECT_API_URL, temporary_settings

            prepared = run.flow()

        if self._server is not None:
            self._server.wait()
        with temporary_settings({PREFECT_API_URL: api}):
            try:
                with get_client(sync_client=True) as client:
                    client.hello()
            except httpx.HTTPError as error:
                raise StageError(
                    "start",
                    f"Prefect's API at {api} does not answer: {error}. Start it, or unset PREFECT_API_URL: a run then has "
                    "a server of its own",
                ) from error
            return prepared(run, on_start)

    def _find_api(self) -> str:
        """The Prefect API the user has configured, else that of a server started now."""
        from prefect.settings import PREFECT_API_URL

        if self._api is None:
            self._api = PREFECT_API_URL.value()
        if self._api is None:
            self._server = own_server(self._workspace / "prefect-server.log")
            self._api = self._server.url
        return self._api

    def _connected(self) -> Tracker:
        if self._tracker is None:
            self._tracker = Tracker(self._section, self._workspace)
        return self._tracker
