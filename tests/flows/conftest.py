"""What tests of whole flows share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from flows.worker import Worker


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
