"""The Prefect flow: every step of a run of clean is a task. The steps themselves are in `flows.cleaning`.

Annotations are evaluated here: Prefect sends a flow to another process, which does not find names in text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from prefect import flow, runtime
from prefect.artifacts import create_link_artifact, create_table_artifact

from flows.cleaning import CleanRun
from flows.schema import CleanConfig
from flows.screen import Screen
from flows.tasks import mark_crashed, step

TOP_ROWS = 20  # rows of the table of decisions on Prefect's page


@flow(name="clean", retries=0, persist_result=False)
def clean(config: CleanConfig) -> dict[str, Any]:
    """Find wrong labels, edit them, retrain, compare and report; returns the summary."""
    with Screen() as screen, CleanRun(config, screen) as run:
        step("load", run.prepare)()
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
    model = step("train", run.model)()
    index = step("index", run.index)(model)
    scores = step("score", run.score)(model, index)
    decisions = step("decide", run.decide)(model, index, scores)
    cleaned = step("apply", run.apply)(decisions)
    after = step("retrain", run.retrain)(decisions, cleaned)
    step("compare", run.compare)(model, after)
    summary = step("report", run.report)()
    step("publish", publish)(summary)
    return summary


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
