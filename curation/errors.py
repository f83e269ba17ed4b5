"""The errors a user of the tool can cause or must act on; everything else is a bug and keeps its own type."""

from __future__ import annotations

from collections.abc import Sequence


class CurationError(Exception):
    """Base of every error this tool raises on purpose; its text says what was expected, what came, where, and what to do."""


class DataError(CurationError):
    """The data is wrong: every problem found in one read, reported together.

    Attributes:
        problems: one sentence a problem, each naming the file, the column and the row ids it is about.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Keep ``problems`` (at least one) and join them, one a line, into the message."""
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class ModelError(CurationError):
    """A model cannot be built or loaded: wrong class, missing parameter, checkpoint of another model."""


class TrainingError(CurationError):
    """Training cannot go on: the loss is not finite, or the options do not fit the machine."""


class LedgerError(CurationError):
    """The ledger of requests is missing, damaged or busy, or refuses a step that does not follow from the one before."""
