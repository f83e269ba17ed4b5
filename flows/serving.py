"""`curate serve`: clean or select on a cron schedule, by Prefect's serve."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from flows import environment
from flows.config import find_config, load_config, read_overrides
from flows.errors import ConfigError
from flows.outputs import check_writable
from flows.prefect_server import Server, answers
from flows.schema import CleanConfig, RecordedConfig
from flows.select_schema import SelectConfig
from flows.serve_schema import ServeConfig
from flows.tracking import tracking_uri


def serve(options: argparse.Namespace, tokens: list[str]) -> int:
    """Run a job on its schedule until Ctrl-C; everything is checked before the first run is due.

    The job's file is read once: after an edit, start it anew; or change the parameters on Prefect's page.

    Raises:
        ConfigError: this file, the job's file, the cron line or the time zone is wrong.
    """
    environment.prepare()
    file = find_config(options.config)
    config = load_config(ServeConfig, file, *read_overrides(tokens, ServeConfig))
    kind, schema, given = _job(config)
    job_file = find_config(str(given))
    job = load_config(schema, job_file)
    if job.output_dir is not None:
        raise ConfigError(
            f"{job_file}: output_dir: a job on a schedule needs a folder for every state of its data: leave it out"
        )
    schedule = _schedule(config, str(file))
    check_writable(job.workspace, "workspace")
    tracking_uri(job.tracking, job.workspace)
    job.workspace.mkdir(parents=True, exist_ok=True)
    console = Console()
    api = _api(config.port, job.workspace)
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.types.entrypoint import EntrypointType

    flow = getattr(import_module(f"flows.{kind}"), kind)
    console.print(
        f"{kind} of {job_file} at {config.cron!r} ({config.timezone}); results in {job.workspace}/runs",
        soft_wrap=True,
    )
    console.print(f"Prefect: {api.removesuffix('/api')}; stop with Ctrl-C", highlight=False)
    with temporary_settings({PREFECT_API_URL: api}):
        flow.serve(
            name=config.name or kind,
            schedule=schedule,
            parameters={
                "config": job.model_dump(mode="json", exclude_unset=True)
            },  # what is asked of an index stays told
            limit=1,  # a run that is still going is not joined by the next one
            print_starting_message=False,
            entrypoint_type=EntrypointType.MODULE_PATH,  # runs import the installed flow, wherever serve was started
        )
    return 0


def _job(config: ServeConfig) -> tuple[str, type[RecordedConfig], Path]:
    """The command of the job, which is the name of its flow, its schema and its file."""
    if config.select is not None:
        return "select", SelectConfig, config.select
    return "clean", CleanConfig, cast(Path, config.clean)


def _schedule(config: ServeConfig, file: str) -> Any:
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron

    try:
        CronSchedule(cron=config.cron, timezone=config.timezone)
    except ValueError:
        raise ConfigError(
            f"{file}: cron: expected five fields such as '0 3 * * *' and a time zone such as Europe/Berlin, "
            f"got {config.cron!r} and {config.timezone!r}"
        ) from None
    return Cron(config.cron, timezone=config.timezone)


def _api(port: int, workspace: Path) -> str:
    """A Prefect API that keeps schedules: the configured one, one that runs here on ``port``, else a new one there.

    Raises:
        StageError: the server did not start.
    """
    from prefect.settings import PREFECT_API_URL

    given = PREFECT_API_URL.value()
    if given:
        return str(given)
    here = f"http://127.0.0.1:{port}/api"
    if answers(here):
        return here
    server = Server(workspace / "prefect-server.log", port, scheduler=True)
    server.wait()
    return server.url
