"""What the user sees while stages run: a progress bar each on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 10.0  # between two plain lines of one stage


class Screen:
    """Draws the stages of one run. Use it as a context manager, so that the terminal is left in order."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._spoken = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bars = Progress(
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def begin(self, stage: str, text: str = "starting") -> None:
        """A stage starts; ``text`` stands beside it until it reports progress."""
        self._stage, self._spoken = stage, time.monotonic()
        if self._bars is not None:
            self._task = self._bars.add_task(stage, total=None, text=text)
        else:
            self.line(f"{stage}: {text}")

    def progress(self, text: str, done: int, total: int | None) -> None:
        """The running stage has done ``done`` of ``total`` (None: not known) of what ``text`` names."""
        count = f"{done}/{total}" if total is not None else str(done)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, text=f"{text} {count}")
        elif time.monotonic() - self._spoken > PLAIN_SECONDS:
            self._spoken = time.monotonic()
            self.line(f"{self._stage}: {text} {count}")

    def end(self, text: str, seconds: float | None = None) -> None:
        """The running stage is finished; ``text`` says with what."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=1, total=1, text=text)
            self._bars.stop_task(self._task)
            self._task = None
        else:
            self.line(f"{self._stage}: {text}" + (f" ({seconds:.1f} s)" if seconds is not None else ""))

    def line(self, text: str) -> None:
        """One plain line, above the bars where there are any."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
