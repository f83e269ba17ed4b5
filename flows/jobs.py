"""`curate clean`, `curate select` and `curate unlearn`, from the parsed command line to the closing table."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console

from flows import environment, summary
from flows.cleaning import CleanRun
from flows.config import find_config, load_config, read_overrides
from flows.files import read_json
from flows.outputs import RUN
from flows.recorded import RecordedRun
from flows.schema import CleanConfig, RecordedConfig
from flows.screen import Screen

Config = TypeVar("Config", bound=RecordedConfig)


def clean(options: argparse.Namespace, tokens: list[str]) -> int:
    """Run clean; returns the exit code.

    Raises:
        CurationError: as `flows.cli` reports them.
    """
    found = _found(CleanConfig, CleanRun, options, tokens)
    summary.closing_table(found, Console())
    return 0


def select(options: argparse.Namespace, tokens: list[str]) -> int:
    """Run select; returns the exit code.

    Raises:
        CurationError: as `flows.cli` reports them.
    """
    from flows import select_summary
    from flows.select_schema import SelectConfig
    from flows.selecting import SelectRun

    found = _found(SelectConfig, SelectRun, options, tokens)
    select_summary.closing_table(found, Console())
    return 0


def unlearn(options: argparse.Namespace, tokens: list[str]) -> int:
    """Run unlearn; returns the exit code: 1 where the records are still in the model that is in use, or named in the workspace.

    Raises:
        CurationError: as `flows.cli` reports them.
    """
    from flows import unlearn_summary
    from flows.unlearn_schema import UnlearnConfig
    from flows.unlearning import UnlearnRun

    found = _found(UnlearnConfig, UnlearnRun, options, tokens)
    unlearn_summary.closing_table(found, Console())
    left = (found.get("purge") or {}).get("left")
    return 0 if found["status"] in unlearn_summary.DONE and not left else 1


def _found(
    schema: type[Config],
    kind: Callable[[Config, Screen, str], RecordedRun],
    options: argparse.Namespace,
    tokens: list[str],
) -> dict[str, Any]:
    """The summary of a run of ``kind``."""
    config = _config(schema, options, tokens)
    with Screen() as screen, kind(config, screen, options.command) as run:
        return _run(run)


def _config(schema: type[Config], options: argparse.Namespace, tokens: list[str]) -> Config:
    environment.prepare()
    # The screen tells of stages and errors; Prefect's page keeps Prefect's own log of the run.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    overrides, problems = read_overrides(tokens, schema)
    for name in ("workspace", "output_dir"):
        if getattr(options, name) is not None:
            overrides[name] = os.path.abspath(os.path.expanduser(getattr(options, name)))
    return load_config(schema, find_config(options.config), overrides, problems)


def _run(run: RecordedRun) -> dict[str, Any]:
    """Prepare, and run the Prefect flow on what is prepared where there is something to do; gives the summary."""
    if not _finished_before(run.config):
        run.services.start()
    run.prepare()
    if run.unchanged is not None:
        return run.unchanged
    run.screen.begin("start", "starting Prefect and MLflow")
    began = time.monotonic()

    def started() -> None:
        run.screen.end("done", time.monotonic() - began)

    return run.services.run_flow(run, started)


def _finished_before(config: RecordedConfig) -> bool:
    """Whether a run of this name has finished, so that most likely nothing has changed and Prefect is not needed."""
    runs = [config.output_dir] if config.output_dir else (config.workspace / "runs").glob(f"{config.name}-*")
    return any((read_json(folder / RUN) or {}).get("status") == "finished" for folder in runs)
