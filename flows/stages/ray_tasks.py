"""An index built by Ray tasks, one a worker, on whatever machines the cluster has.

Plain Ray, not prefect-ray: a stage is no Prefect flow (its process must fork data loaders, which one that ran a flow cannot,
and `curate index` starts no Prefect at all), and every Prefect task would need a way from each machine of the cluster to
Prefect's server, which listens on this machine only.

Ray runs a task again when its process or machine dies; it goes on from the shards that are on disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curation.errors import CurationError
from flows.stages.common import Arguments, Progress
from flows.stages.indexed import Rows, indexed
from lorif_core import LoRIF
from lorif_core.manifest import read_manifest
from lorif_core.parallel import build_part, join, make_head, read_split, rows_done

RETRIES = 5
"""How often a task is run again after its process died."""
POLL_SECONDS = 0.5


class RayError(CurationError):
    """The cluster could not build the index."""


def fit(arguments: Arguments, index: Path, workers: int, progress: Progress) -> None:
    """Build the index, its curvature included, at ``index`` by ``workers`` tasks of the cluster that RAY_ADDRESS names.

    Raises:
        RayError: a task failed, or its process died too often, or the cluster does not see the workspace.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        progress("starting Ray", 0, None)
        ray.init(log_to_driver=False)
    index.mkdir(parents=True, exist_ok=True)
    gpu = arguments["train"]["accelerator"] != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    job = (dict(arguments), str(index), os.getcwd(), workers)
    remote = {
        step: ray.remote(step).options(max_retries=RETRIES, num_cpus=1, num_gpus=int(gpu))
        for step in (_head, _part, _end)
    }
    try:
        progress("preparing the index", 0, None)
        if _wait([remote[_head].remote(*job)], lambda: None)[0]:
            examples = read_split(index).examples
            parts = [remote[_part].remote(*job, worker) for worker in range(workers)]
            _wait(parts, lambda: progress("index", rows_done(index), examples))
        progress("joining the index", 0, None)
        _wait([remote[_end].remote(*job)], lambda: None)
    finally:
        if own:
            ray.shutdown()


def _wait(tasks: list[Any], tell: Callable[[], None]) -> list[Any]:
    """What the tasks return; the others are stopped when one fails, or this process is interrupted."""
    import ray

    pending = tasks
    try:
        while pending:
            finished, pending = ray.wait(pending, timeout=POLL_SECONDS)
            for task in finished:
                ray.get(task)
            tell()
        results: list[Any] = ray.get(tasks)
        return results
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise RayError(
            str(cause) if isinstance(cause, CurationError) else f"{type(cause).__name__}: {cause}"
        ) from error
    except ray.exceptions.RayError as error:
        raise RayError(
            f"a Ray task of the index was lost, also after {RETRIES} more tries: {str(error).strip().splitlines()[0]} "
            "Run it again to go on where it was"
        ) from error
    finally:
        for task in pending:
            ray.cancel(task, force=True)


def _head(arguments: Arguments, index: str, here: str, workers: int) -> bool:
    """Make what all parts share; whether there is anything left to build."""
    attributor, rows = _opened(arguments, index, here)
    make_head(attributor.build(rows.loader, index, rows.ids), workers)
    return not read_manifest(Path(index)).complete


def _part(arguments: Arguments, index: str, here: str, workers: int, worker: int) -> None:
    attributor, rows = _opened(arguments, index, here)
    build_part(attributor.build(rows.loader, index, rows.ids), worker, workers)


def _end(arguments: Arguments, index: str, here: str, workers: int) -> None:
    """Join the parts and fit the curvature, which is kept beside them."""
    attributor, rows = _opened(arguments, index, here)
    join(Path(index), rows.ids)
    attributor.finish(Path(index))


def _opened(arguments: Arguments, index: str, here: str) -> tuple[LoRIF, Rows]:
    """What `indexed` gives, in a Ray process, which knows neither where own classes are nor where it should be."""
    if not Path(index).is_dir():
        raise RayError(
            f"{index} is not there on {os.uname().nodename}: every machine of the cluster must see the workspace"
        )
    for place in (here, arguments["root"]):
        if place not in sys.path:
            sys.path.insert(0, place)
    return indexed(arguments, lambda text, done, total: None)
