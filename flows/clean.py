"""The Prefect flow: every step of a run of clean is a task. The steps themselves are in `flows.cleaning`.

Annotations are evaluated here: Prefect sends a flow to another process, which does not find names in text.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import polars as pl
from prefect import flow, runtime, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.cleaning import CleanRun
from flows.schema import CleanConfig
from flows.screen import Screen

P = ParamSpec("P")
R = TypeVar("R")

TOP_ROWS = 20  # rows of the table of decisions on Prefect's page


@flow(name="clean", retries=0, persist_result=False)
def clean(config: CleanConfig) -> dict[str, Any]:
    """Find wrong labels, edit them, retrain, compare and report; returns the summary."""
    with Screen() as screen, CleanRun(config, screen) as run:
        _step("load", run.prepare)()
        if run.unchanged is not None:
            screen.line("unchanged: data, configuration and model are as they were; nothing to do")
            return run.unchanged
        return _steps(run)


def clean_prepared(run: CleanRun, on_start: Callable[[], None]) -> dict[str, Any]:
    """The same flow for what ``run`` has already prepared; ``on_start`` is called once Prefect has started it."""

    @flow(name="clean", retries=0, persist_result=False)
    def clean(config: CleanConfig) -> dict[str, Any]:
        on_start()
        return _steps(run)

    return clean(run.config)


def _steps(run: CleanRun) -> dict[str, Any]:
    killed = run.begin(runtime.flow_run.id)
    if killed is not None:
        mark_crashed(killed)
    model = _step("train", run.model)()
    index = _step("index", run.index)(model)
    scores = _step("score", run.score)(model, index)
    decisions = _step("decide", run.decide)(model, index, scores)
    cleaned = _step("apply", run.apply)(decisions)
    after = _step("retrain", run.retrain)(decisions, cleaned)
    _step("compare", run.compare)(model, after)
    summary = _step("report", run.report)()
    _step("publish", publish)(summary)
    return summary


def _step(name: str, call: Callable[P, R]) -> Callable[P, R]:
    """A step as a Prefect task: what passes between tasks is small (figures and paths), nothing is cached or kept."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)(call)


def mark_crashed(flow_run_id: str) -> None:
    """Say of a flow run that its process was killed: Prefect shows it as running otherwise."""
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):  # it may have run on another server
        state = client.read_flow_run(UUID(flow_run_id)).state
        if state is not None and state.is_running():
            client.set_flow_run_state(UUID(flow_run_id), Crashed(message="Its process was killed."), force=True)


def publish(summary: dict[str, Any]) -> None:
    """Put the most suspicious decisions and links to the results on Prefect's page."""
    decisions = pl.read_parquet(summary["files"]["decisions"])
    top = (
        decisions.filter(pl.col("decision") != "keep")
        .sort("score", descending=True, nulls_last=True, maintain_order=True)
        .head(TOP_ROWS)
    )
    create_table_artifact(
        table=[{key: str(value) for key, value in row.items()} for row in top.to_dicts()],
        key="clean-decisions",
        description=f"The {len(top)} most suspicious of {summary['n_flagged']} flagged rows of {summary['name']}",
    )
    create_link_artifact(
        link=Path(summary["files"]["report"]).as_uri(),
        link_text=f"Report of {summary['name']}",
        key="clean-report",
        description=f"MLflow run {summary['mlflow_run_id']}: {summary['mlflow_command']}",
    )
