"""A stage's work on a Ray cluster: ``python -m flows.ray_flow JOB.json``, a Prefect flow of its own on prefect-ray.

Every share of a step is a Prefect task (`flows.ray_tasks`) on whatever machine the cluster has room on. A share whose process
died is done again by Prefect, one whose Ray worker or machine died by Ray; either goes on from what is on disk, so the
result is the same.

The cluster is the one that RAY_ADDRESS names, else one of this machine's own; its machines must see the stage's folder under
the same path, and Prefect's API: PREFECT_API_URL names one that they reach, else one is started here, for this machine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from flows import environment
from flows.ray_tasks import RETRIES, ShareFailed, share, was_lost
from flows.stage import INTERRUPTED, Events, message_of

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0


def main() -> int:
    """Run the flow, as the parent follows it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stream = os.dup(1)
    os.dup2(2, 1)
    environment.prepare()
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        run(sys.argv[1], job, stream)
    except Exception as error:  # noqa: BLE001  whatever went wrong, the parent must hear of it
        traceback.print_exc()
        _events(stream).send(event="failed", message=message_of(error))
    return 0


def run(file: str, job: dict[str, Any], stream: int) -> None:
    """All steps of a job, each when the one before is done; progress goes to the file descriptor ``stream``.

    Raises:
        ShareFailed: a share failed, or died too often.
        StageError: Prefect's API did not start.
    """
    _events(stream).progress("starting Prefect and Ray", 0, None)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.prefect_server import Server

    api = PREFECT_API_URL.value()
    if api is None:
        server = Server(Path(job["aside"]) / "prefect-server.log")
        api = server.url
    from prefect import flow
    from prefect_ray import RayTaskRunner

    from flows.stages.works import WORKS

    if api != PREFECT_API_URL.value():
        server.wait()

    def steps() -> None:  # sent to Ray's workers with all it refers to, which an open file cannot be
        events = _events(stream)
        for number, step in enumerate(WORKS[job["work"]]):
            count = job["workers"] if step.by_all else 1
            _wait(_submitted(file, job, number, step.name, count), step.name, job, events)

    with temporary_settings({PREFECT_API_URL: api}):
        runner = RayTaskRunner(init_kwargs={"log_to_driver": False})
        flow(name=f"{job['work']} on Ray", task_runner=runner, persist_result=False)(steps)()


def _events(stream: int) -> Events:
    return Events(os.fdopen(stream, "w", encoding="utf-8", closefd=False), silent=False)


def _submitted(file: str, job: dict[str, Any], number: int, name: str, count: int) -> list[Any]:
    """The futures of the shares of a step."""
    import ray
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect_ray.context import remote_options

    accelerated = job["arguments"]["train"]["accelerator"] != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    one = task(
        name=name,
        task_run_name=f"{name} {{worker}}",
        retries=RETRIES,
        retry_condition_fn=was_lost,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(share)
    with remote_options(max_retries=RETRIES, num_cpus=1, num_gpus=int(accelerated)):
        return [one.submit(file, number, worker) for worker in range(count)]


def _wait(futures: list[Any], name: str, job: dict[str, Any], events: Events) -> None:
    """Return when all are done; the others are stopped when one fails, or this process is interrupted."""
    import ray

    pending = {future.wrapped_future: future for future in futures}
    try:
        while pending:
            finished, _ = ray.wait(list(pending), timeout=POLL_SECONDS)
            for reference in finished:
                future = pending.pop(reference)
                future.wait()
                if not future.state.is_completed():
                    raise ShareFailed(_reason(future.state, name))
            events.progress(name, *_done(job, name, len(futures), len(futures) - len(pending)))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _done(job: dict[str, Any], name: str, shares: int, done: int) -> tuple[int, int]:
    """How far a step is: rows of the index, or shares."""
    from lorif_core.index import PARTS, SPLIT
    from lorif_core.parallel import read_split, rows_done

    index = Path(job["folder"]) / "index"
    if name != "index" or not (index / PARTS / SPLIT).exists():
        return done, shares
    return rows_done(index), read_split(index).examples


def _reason(state: Any, name: str) -> str:
    """Why a share was not done."""
    if state.is_crashed():
        lost = str(state.message).strip().splitlines()[-1]
        return f"a Ray worker was lost while it did {name}, also after {RETRIES} more tries ({lost}): run it again"
    return str(state.result(raise_on_failure=False))


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # Prefect and Ray stop what they started
    time.sleep(GRACE_SECONDS)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
