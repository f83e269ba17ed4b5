"""The Prefect flow: every step of a run of unlearn is a task. The steps themselves are in `flows.unlearning`.

Annotations are evaluated here: Prefect sends a flow to another process, which does not find names in text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import create_link_artifact

from flows.screen import Screen
from flows.tasks import mark_crashed, step
from flows.unlearn_schema import UnlearnConfig
from flows.unlearning import UnlearnRun


@flow(name="unlearn", retries=0, persist_result=False)
def unlearn(config: UnlearnConfig) -> dict[str, Any]:
    """Resolve, weigh, unlearn, verify and publish; returns the summary."""
    with Screen() as screen, UnlearnRun(config, screen) as run:
        step("load", run.prepare)()
        if run.unchanged is not None:
            if "checked" in run.unchanged:  # else it was a purge that had to be finished
                screen.line("unchanged: request, data, configuration and model are as they were; nothing to do")
            return run.unchanged
        return _steps(run)


def unlearn_prepared(run: UnlearnRun, on_start: Callable[[], None]) -> dict[str, Any]:
    """The same flow for what ``run`` has already prepared; ``on_start`` is called once Prefect has started it."""

    @flow(name="unlearn", retries=0, persist_result=False)
    def unlearn(config: UnlearnConfig) -> dict[str, Any]:
        on_start()
        return _steps(run)

    return unlearn(run.config)


def _steps(run: UnlearnRun) -> dict[str, Any]:
    killed = run.begin(runtime.flow_run.id)
    if killed is not None:
        mark_crashed(killed)
    if not run.asked:
        return run.finish("no_action")
    model = step("train", run.model)()
    index = step("index", run.index_if_used)(model)
    records = step("resolve", run.resolve)(index)
    if records is None:
        return run.finish("no_action")
    weights = step("weigh", run.weigh)(model, index, records)
    if run.config.dry_run:
        return run.finish("dry_run", records)
    waiting = step("approve", run.unapproved)(records) if run.config.approval.required else None
    if waiting is not None:
        return run.finish(waiting, records)
    unlearned = step("unlearn", run.unlearn)(model, records, weights)
    references = step("references", run.references)(records)
    checked = step("verify", run.verify)(model, unlearned, references, records)
    summary = step("publish", run.publish)(model, unlearned, references, records, checked)
    if run.purging is not None:
        summary = step("purge", run.purge)()
    step("show", show)(summary)
    return summary


def show(summary: dict[str, Any]) -> None:
    """Put a link to what was measured on Prefect's page."""
    create_link_artifact(
        link=Path(summary["files"]["assessment"]).as_uri(),
        link_text=f"Assessment of {summary['name']}: {summary['verdict']}",
        key="unlearn-assessment",
        description=f"{summary['status']}; MLflow run {summary['mlflow_run_id']}: {summary['mlflow_command']}",
    )
