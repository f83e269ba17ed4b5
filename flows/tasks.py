"""What the Prefect flows of runs share: a step as a task, and the end of a flow whose process was killed."""

from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

P = ParamSpec("P")
R = TypeVar("R")


def step(name: str, call: Callable[P, R]) -> Callable[P, R]:
    """A step as a Prefect task: what passes between tasks is small (figures and paths), nothing is cached or kept."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)(call)


def mark_crashed(flow_run_id: str) -> None:
    """Say of a flow run that its process was killed: Prefect shows it as running otherwise."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):  # it may have run on another server
        state = client.read_flow_run(UUID(flow_run_id)).state
        if state is not None and state.is_running():
            client.set_flow_run_state(UUID(flow_run_id), Crashed(message="Its process was killed."), force=True)
