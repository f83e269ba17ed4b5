"""The Prefect flow: every step of a run of select is a task. The steps themselves are in `flows.selecting`.

Annotations are evaluated here: Prefect sends a flow to another process, which does not find names in text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from prefect import flow, runtime
from prefect.artifacts import create_link_artifact, create_table_artifact

from flows.screen import Screen
from flows.select_schema import SelectConfig
from flows.selecting import SelectRun
from flows.tasks import mark_crashed, step

TOP_ROWS = 20  # rows of the table of the selection on Prefect's page


@flow(name="select", retries=0, persist_result=False)
def select(config: SelectConfig) -> dict[str, Any]:
    """Choose the rows worth training on, fine-tune on them and on the controls' choices, and report; returns the summary."""
    with Screen() as screen, SelectRun(config, screen) as run:
        step("load", run.prepare)()
        if run.unchanged is not None:
            screen.line("unchanged: pool, target, configuration and model are as they were; nothing to do")
            return run.unchanged
        return _steps(run)


def select_prepared(run: SelectRun, on_start: Callable[[], None]) -> dict[str, Any]:
    """The same flow for what ``run`` has already prepared; ``on_start`` is called once Prefect has started it."""

    @flow(name="select", retries=0, persist_result=False)
    def select(config: SelectConfig) -> dict[str, Any]:
        on_start()
        return _steps(run)

    return select(run.config)


def _steps(run: SelectRun) -> dict[str, Any]:
    killed = run.begin(runtime.flow_run.id)
    if killed is not None:
        mark_crashed(killed)
    excluded = step("exclude", run.exclude)()
    model = step("train", run.warm_up)(excluded)
    indexes = step("index", run.indexed)(model)
    scores = step("aggregate", run.aggregate)(model, indexes, excluded)
    chosen = step("choose", run.choose)(model, indexes, excluded, scores)
    tuned = step("fine-tune", run.fine_tune)(model, chosen)
    summary = step("report", run.report)(excluded, chosen, tuned)
    step("publish", publish)(summary)
    return summary


def publish(summary: dict[str, Any]) -> None:
    """Put the first rows of the selection and a link to the report on Prefect's page."""
    top = pl.read_parquet(summary["files"]["selected"], n_rows=TOP_ROWS)
    create_table_artifact(
        table=[{key: str(value) for key, value in row.items()} for row in top.to_dicts()],
        key="select-rows",
        description=f"The first {len(top)} of {summary['n_selected']} rows selected by {summary['name']}",
    )
    create_link_artifact(
        link=Path(summary["files"]["report"]).as_uri(),
        link_text=f"Report of {summary['name']}",
        key="select-report",
        description=f"MLflow run {summary['mlflow_run_id']}: {summary['mlflow_command']}",
    )
