"""What a run of clean found, as the plain keys of ``summary.json``, and as the table that closes it on screen."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows import versions
from flows.runner import Finished
from flows.schema import CleanConfig

# What the stage that decides hands on as it is.
DECIDED = (
    "n_flagged",
    "n_flagged_planted",
    "average_precision",
    "average_precision_interval",
    "precision",
    "recall",
    "signals",
    "decisions",
    "estimated_errors",
    "threshold",
)


def summarise(
    config: CleanConfig,
    stages: Mapping[str, Finished],
    *,
    folder: Path,
    run_ids: Mapping[str, str | None],
    uri: str,
    total_seconds: float,
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        config: the configuration.
        stages: the finished stages by name.
        folder: of the results.
        run_ids: MLflow's parent run and Prefect's flow run, under the keys they get.
        uri: where MLflow keeps it.
        total_seconds: wall time of the whole command so far.
        digests: what the results are of.
    """
    loaded, decided = stages["load"].values, stages["decide"].values
    compared = stages["compare"].values
    before, after, difference = compared["before"], compared["after"], compared["difference"]
    seconds = {name: stage.seconds for name, stage in stages.items()}
    return {
        "status": "finished",
        "name": config.name,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "n_examples": loaded["n_train"],
        "n_validation": loaded["n_validation"],
        "classes": loaded["classes"],
        "n_planted": loaded["n_planted"],
        **{key: decided[key] for key in DECIDED},
        "accuracy_before": before["accuracy"],
        "accuracy_before_interval": [before["low"], before["high"]],
        "accuracy_after": after["accuracy"] if after else None,
        "accuracy_after_interval": [after["low"], after["high"]] if after else None,
        "accuracy_difference": difference["value"] if difference else None,
        "accuracy_difference_interval": [difference["low"], difference["high"]] if difference else None,
        "seconds": {**seconds, "total": round(total_seconds, 3)},
        "reused": [name for name, stage in stages.items() if stage.reused],
        "seeds": {"train": config.train.seed, "index": config.index.seed},
        "model": loaded["model"],
        "digests": {**digests, **{name: stage.digest for name, stage in stages.items()}},
        "versions": versions.recorded(),
        **run_ids,
        "mlflow_tracking_uri": uri,
        "mlflow_command": mlflow_command(uri),
        "files": files(folder),
    }


def closing_table(summary: Mapping[str, Any], console: Console) -> None:
    """Print what was found and where everything is."""
    print_closing(summary, "data, configuration and model", _lines(summary), console)


def print_closing(
    summary: Mapping[str, Any], read: str, lines: Iterable[tuple[str, str]], console: Console, width: int = 24
) -> None:
    """Print how a run ended and ``lines`` of title and text; long ones are left whole, so that paths can be copied.

    Args:
        summary: of the run.
        read: what is as it was when the run was unchanged.
        lines: the titles are at most ``width`` long.
        console: where.
        width: of the column of titles.
    """
    console.print()
    if summary["status"] == "unchanged":
        console.print(
            f"[bold]Unchanged[/]: {read} are as they were; checked in {summary['checked']['seconds']:.1f} s. The results of "
            f"{summary['finished']}:",
            highlight=False,
            soft_wrap=True,
        )
    else:
        reused = len(summary["reused"])
        note = f", {reused} stage{'s' if reused > 1 else ''} reused" if reused else ""
        console.print(f"[bold]Done[/] in {summary['seconds']['total']:.1f} s{note}.", highlight=False)
    for title, text in lines:
        console.print(f"[bold]{title:<{width}}[/]{escape(text)}", highlight=False, soft_wrap=True)


def _lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    n, flagged, planted = summary["n_examples"], summary["n_flagged"], summary["n_planted"]
    yield "Flagged", f"{flagged:,} of {n:,} training rows ({share(flagged, n)})"
    if planted is not None:
        found = summary["n_flagged_planted"]
        ends = f"{share(found, planted)} of the {planted:,} wrong labels were found"
        yield "Truly wrong among them", f"{found:,} ({share(found, flagged)}); {ends}"
    yield "Accuracy before", accuracy(summary, "before")
    changed = summary["decisions"]["drop"] + summary["decisions"]["relabel"]
    if not changed:
        yield "Accuracy after", "the same: no row was changed"
    elif summary["accuracy_after"] is not None:
        yield "Accuracy after", accuracy(summary, "after")
        low, high = summary["accuracy_difference_interval"]
        interval = f"(95 %: {100 * low:+.1f} to {100 * high:+.1f})"
        yield "Difference", f"{100 * summary['accuracy_difference']:+.1f} points {interval}{_reading(low, high)}"
    for title, name in (("Report", "report"), ("Decisions", "decisions"), ("Cleaned data", "cleaned")):
        yield title, summary["files"][name]
    yield "MLflow page", summary["mlflow_command"]


def _reading(low: float, high: float) -> str:
    """What an interval of the difference in accuracy says to who wants the cleaned rows; nothing where they are better."""
    if high < 0:
        return ": lower by more than chance explains. Look at the flagged rows before you use the cleaned data"
    return ": may be chance" if low <= 0 else ""


def share(part: float, whole: float) -> str:
    """``part / whole`` in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def accuracy(summary: Mapping[str, Any], when: str) -> str:
    """An accuracy with its interval."""
    low, high = summary[f"accuracy_{when}_interval"]
    return f"{100 * summary[f'accuracy_{when}']:.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"


def mlflow_command(uri: str) -> str:
    """The command that opens the MLflow page of the runs at ``uri``."""
    return uri if uri.startswith(("http://", "https://")) else f'mlflow ui --backend-store-uri "{uri}"'


def files(folder: Path) -> dict[str, str]:
    """Where the results are."""
    names = {
        "report": "report.html",
        "decisions": "decisions.parquet",
        "scores": "scores.parquet",
        "cleaned": "cleaned.parquet",
    }
    return {key: str(folder / name) for key, name in names.items()}
