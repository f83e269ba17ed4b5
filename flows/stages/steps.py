"""What the processes that share a stage's work do, step by step: a step begins when all have done the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.stages.common import Arguments, Progress


@dataclass(frozen=True)
class Share:
    """The part of one process, 0 .. `workers` - 1, in a step.

    Attributes:
        arguments: of the stage.
        folder: of the stage, which all processes see.
        progress: told how far this one is.
    """

    arguments: Arguments
    folder: Path
    worker: int
    workers: int
    progress: Progress


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: what it does.
        run: does one process's share; done again when that process died, it goes on where that one was.
        by_all: by all processes; else by the first alone.
    """

    name: str
    run: Callable[[Share], None]
    by_all: bool
