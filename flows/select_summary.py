"""What a run of select chose and what it was worth, as the plain keys of ``summary.json`` and the table that closes it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from curation.selection_report.comparison import advantages, over_seeds
from flows import versions
from flows.runner import Finished
from flows.select_schema import SelectConfig
from flows.summary import mlflow_command, print_closing, share

RATES = ("val_accuracy", "val_exact")
"""What fine-tuned models are compared by: of classifiers and of language models."""


def summarise(
    config: SelectConfig,
    stages: Mapping[str, Finished],
    tuned: Mapping[str, Sequence[Finished]],
    *,
    folder: Path,
    results: Sequence[str],
    seeds: Sequence[int],
    run_ids: Mapping[str, str | None],
    uri: str,
    total_seconds: float,
    checkpoints: Sequence[Mapping[str, Any]],
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        config: the configuration.
        stages: the finished stages by name.
        tuned: strategy or control -> its fine-tunings, one a seed.
        folder: of the results.
        results: names of the files in it.
        seeds: of the fine-tunings.
        run_ids: MLflow's parent run and Prefect's flow run, under the keys they get.
        uri: where MLflow keeps it.
        total_seconds: wall time of the whole command so far.
        checkpoints: versions of the states of the model that scored and of their indexes, the model itself last.
        digests: what the results are of.
    """
    loaded, excluded, chosen = (stages[name].values for name in ("load", "exclude", "choose"))
    rates = {name: [_rate(one) for one in found] for name, found in tuned.items()}
    losses = {name: [float(one.values["metrics"]["val_loss"]) for one in found] for name, found in tuned.items()}
    target = loaded["select"]
    return {
        "status": "finished",
        "name": config.name,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "strategy": config.strategy.name,
        "n_pool": loaded["n_train"],
        "n_excluded": loaded["n_train"] - excluded["allowed"],
        "excluded": excluded["excluded"],
        "n_selected": chosen["rows"],
        "tokens_selected": chosen["tokens"],
        "n_target": target["choosing"],
        "n_held_out": target["measuring"],
        "target_groups": target["groups"],
        "target_accuracy": {
            name: over_seeds(values, within=(0.0, 1.0)).to_json(seeds) for name, values in rates.items()
        },
        "target_loss": {
            name: over_seeds(values, within=(0.0, math.inf)).to_json(seeds) for name, values in losses.items()
        },
        "target_advantage": {
            name: found.to_json(seeds)
            for name, found in (advantages(rates, config.strategy.name) if rates else {}).items()
        },
        "n_harmful": chosen["harmful"],
        "bias": chosen["bias"],
        "steps": steps_of(tuned),
        "index": checkpoints[-1],
        "checkpoints": list(checkpoints),
        "seconds": {**{name: stage.seconds for name, stage in stages.items()}, "total": round(total_seconds, 3)},
        "reused": [name for name, stage in stages.items() if stage.reused],
        "seeds": {
            "train": config.train.seed,
            "fine_tune": list(seeds),
            "index": config.index.seed,
            "target": config.target.seed,
            "strategy": config.strategy.seed,
        },
        "model": loaded["model"],
        "digests": {
            **digests,
            "target": target["digest"],
            "selection": chosen["digests"]["selected"],
            **{name: stage.digest for name, stage in stages.items()},
        },
        "versions": versions.recorded(),
        **run_ids,
        "mlflow_tracking_uri": uri,
        "mlflow_command": mlflow_command(uri),
        "files": {name.rpartition(".")[0]: str(folder / name) for name in results},
    }


def steps_of(tuned: Mapping[str, Sequence[Finished]]) -> int | None:
    """Optimizer steps of one fine-tuning; None where there was none."""
    return next((one.values["steps"] for found in tuned.values() for one in found), None)


def closing_table(summary: Mapping[str, Any], console: Console) -> None:
    """Print what was chosen and where everything is."""
    print_closing(summary, "pool, target, configuration and model", _lines(summary), console, width=30)


def _lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    pool, chosen, gone = summary["n_pool"], summary["n_selected"], summary["n_excluded"]
    yield "Selected", f"{chosen:,} of {pool:,} rows ({share(chosen, pool)}) by {summary['strategy']}"
    if gone:
        kinds = ", ".join(f"{rows:,} as {kind}" for kind, rows in sorted(summary["excluded"].items()))
        yield "Excluded", f"{gone:,} rows: {kinds}"
    for name, found in summary["target_accuracy"].items():
        yield f"Target after {name}", f"{100 * found['mean']:.1f} %{_interval(found, '.1f')}"
    for name, found in summary["target_advantage"].items():
        yield f"Better than {name} by", f"{100 * found['mean']:+.1f} points{_interval(found, '+.1f')}"
    for name, found in summary["target_loss"].items():
        yield f"Target loss after {name}", f"{found['mean']:.3f} nats{_interval(found, '.3f', times=1)}"
    yield from ((name.replace("_", " ").capitalize(), path) for name, path in summary["files"].items())
    yield "MLflow page", summary["mlflow_command"]


def _interval(found: Mapping[str, Any], form: str, times: float = 100) -> str:
    if found["low"] is None:
        return ""
    return (
        f" (95 % over {len(found['by_seed'])} seeds: {times * found['low']:{form}} to {times * found['high']:{form}})"
    )


def _rate(training: Finished) -> float:
    """Share of the held-out target rows that a fine-tuned model gets right."""
    metrics = training.values["metrics"]
    return float(next(metrics[name] for name in RATES if name in metrics))
