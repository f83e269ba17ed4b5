"""The two ways a command ends badly: the user's input is wrong (exit 2), or a stage failed (exit 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curation.errors import CurationError


class ConfigError(CurationError):
    """The configuration, the output folder or another thing the user named is wrong; nothing was computed.

    Attributes:
        problems: one sentence a problem, each naming the file or option and the dotted key.
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        """Keep ``problems`` (one sentence or several) and join them, one a line, into the message."""
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class InputError(CurationError):
    """A stage refused its input (data, model, checkpoint or index): the child's message, word for word."""


class StageError(CurationError):
    """A stage failed after its input was accepted.

    Attributes:
        stage: the stage's name.
        log: the file that holds the child's output and traceback; None when it never started.
    """

    def __init__(self, stage: str, message: str, log: Path | None = None) -> None:
        """Say in one line that ``stage`` failed with ``message``, and where its ``log`` is."""
        self.stage = stage
        self.log = log
        where = f" Log: {log}" if log is not None else ""
        super().__init__(f"stage {stage} failed: {message}{where}")
