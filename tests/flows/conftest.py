"""What tests of whole flows share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from flows.worker import Worker
from tests.killing import Server, server_of


@pytest.fixture(scope="module")
def one_stage_process() -> Iterator[None]:
    """A process for the stages of all of a module's runs: a small run is mostly the imports of its process.

    How processes are started, let go and stopped is tested where each run has its own (test_runner, test_interrupt).
    """
    made: list[Worker] = []
    idle: list[Worker] = []

    class Kept(Worker):
        """Waits for the next run's jobs where it would have been stopped."""

        def close(self) -> None:
            pass

        def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
            if how is signal.SIGTERM and self.alive:
                idle.append(self)
            else:
                super().stop(how)

    def lend() -> Worker:
        while idle:
            if (worker := idle.pop()).alive:
                return worker
        made.append(Kept())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.runner.Worker", lend)
        yield
    for worker in made:
        Worker.close(worker)
        Worker.stop(worker)


@pytest.fixture(scope="module")
def server(prefect_server: None, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Runs the module's `STEPS` in processes that can be killed, with the tests' own Prefect."""
    from prefect.settings import PREFECT_API_URL

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with server_of(request.module.__name__) as server:
            yield server
