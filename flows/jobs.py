"""`curate clean`, from the parsed command line to the closing table."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from rich.console import Console

from flows import environment
from flows.cleaning import CleanRun
from flows.config import find_config, load_config, read_overrides
from flows.files import read_json
from flows.outputs import RUN
from flows.schema import CleanConfig
from flows.screen import Screen
from flows.summary import closing_table


def clean(options: argparse.Namespace, tokens: list[str]) -> int:
    """Run clean; returns the exit code.

    Raises:
        CurationError: as `flows.cli` reports them.
    """
    environment.prepare()
    # The screen tells of stages and errors; Prefect's page keeps Prefect's own log of the run.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    overrides, problems = read_overrides(tokens, CleanConfig)
    for name in ("workspace", "output_dir"):
        if getattr(options, name) is not None:
            overrides[name] = os.path.abspath(os.path.expanduser(getattr(options, name)))
    config = load_config(CleanConfig, find_config(options.config), overrides, problems)
    with Screen() as screen, CleanRun(config, screen, options.command) as run:
        if not _finished_before(config):
            run.services.start()
        run.prepare()
        summary = run.unchanged or _flow(run)
    closing_table(summary, Console())
    return 0


def _flow(run: CleanRun) -> dict[str, Any]:
    """Run the Prefect flow on what is prepared."""
    run.screen.begin("start", "starting Prefect and MLflow")
    began = time.monotonic()

    def started() -> None:
        run.screen.end("done", time.monotonic() - began)

    return run.services.run_flow(run, started)


def _finished_before(config: CleanConfig) -> bool:
    """Whether a run of this name has finished, so that most likely nothing has changed and Prefect is not needed."""
    runs = [config.output_dir] if config.output_dir else (config.workspace / "runs").glob(f"{config.name}-*")
    return any((read_json(folder / RUN) or {}).get("status") == "finished" for folder in runs)
