"""What weighing the records to be forgotten is worth: GUARD against uniform and random weights at matched forgetting.

A seed draws the first weights of a model, the order of its training, who is to be forgotten, and the order in which the
unlearning sees records and rows that stay; everything but the weights is equal within a seed. Every run is measured where its
records' mean loss is a share (`SHARES`) of that of people the model never read of, by interpolation; it comes there in one of
two ways:

- stopped: rows that stay weigh `ALPHA`, and the run ends at the step that reaches the level;
- tuned: a run has all its steps, and the weight of the rows that stay is chosen so that it ends at the level.

Differences are a run's figure minus that of uniform weights of the same seed: mean over the seeds and half the 95 % interval
(paired Student's t). `seeds`: how many of them reached the level, under both weights, and were not refused.

`retain`: mean loss of all rows that stay (lower is better). `utility`: harmonic mean of probability and ROUGE-L recall, of
truth ratio too where there are wrong answers (people, not TOFU's file), of rows that stay (higher is better). `p10`: the
tenth of the records' losses that is forgotten least: what sparing records costs. `ess`: effective share of the records.
`cost`: CPU seconds of all scoring over those of the steps; for all other figures the machine may be busy.

People: 21 of 140 rows, 3 of 20 embedded people, ten more never learnt. TOFU: 18 of 78 rows, the 6 shortest of each of 3
authors of forget10, beside 10 retained ones, 3 others of forget10 never learnt. Options are the defaults but for `alpha`, the
weight of the rows that stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorif_core.atomic import write_bytes
from tests.benchmarks.forgetting import Task, tasks
from tests.benchmarks.matched import paired
from tests.benchmarks.table import Row, show
from tests.benchmarks.weighted_runs import Subject, Weighting, stopped, subject, tuned

SEEDS = 8
TRIED_FIRST = {"difference": 12.0, "npo": 180.0}
"""Objective -> weight of the rows that stay where tuning begins; for other weights that which uniform ones ended with."""
MATCHINGS = ("stopped", "tuned")
UNIFORM = Weighting("uniform")
WAYS = (
    ("random", "dot", 0),
    ("guard", "dot", 0),
    ("guard", "cosine", 0),
    ("guard-dynamic", "dot", 5),
    ("guard-dynamic", "cosine", 5),
)
"""Method, score, steps between two weighings."""
COMPARED = ("retain", "utility", "p10")
Runs = dict[tuple[str, Weighting], dict[int, dict[str, float]]]
"""(objective, weighting) -> seed -> figures; empty where weights were refused or the level was not reached."""


def runs_of(
    task: Task, seeds: range, matching: str, objectives: Sequence[str], weightings: Sequence[Weighting], kept: Path
) -> Runs:
    """Every run of a task, uniform weights before others; those that lie in the folder ``kept`` are read."""
    found: Runs = {(objective, each): {} for objective in objectives for each in weightings}
    for seed in seeds:
        asked: Subject | None = None
        for (objective, weighting), figures in found.items():
            file = kept / f"{task.name}-{matching}-{objective}-{seed}-{weighting}.json"
            if not file.exists():
                if asked is None:
                    request = task.request(seed)
                    asked = subject(request.data, request.records, task.model(request.data, seed, kept))
                if matching == "stopped":
                    one = stopped(asked, objective, weighting, seed)
                else:
                    first = found[objective, UNIFORM].get(seed, {}).get("alpha", TRIED_FIRST[objective])
                    one = tuned(asked, objective, weighting, seed, first)
                write_bytes(file, json.dumps(one).encode())
                print(f"{file.stem}:", *(f"{name} {value:.4g}" for name, value in one.items()), flush=True)
            figures[seed] = json.loads(file.read_bytes())
    return found


def rows_of(task: Task, runs: Runs) -> list[Row]:
    """A row for each objective and weighting: plain means of uniform weights, differences from them of the others."""
    rows = []
    for (objective, weighting), by_seed in runs.items():
        uniform = runs[objective, UNIFORM]
        seeds = [seed for seed, figures in by_seed.items() if "retain" in figures and "retain" in uniform[seed]]
        figures: dict[str, Any] = {"seeds": f"{len(seeds)}/{len(by_seed)}"}
        if len(seeds) > 1:
            for name in COMPARED:
                ours, theirs = ([one[seed][name] for seed in seeds] for one in (by_seed, uniform))
                if weighting == UNIFORM:
                    figures[name] = float(np.mean(ours))
                else:
                    figures[name], figures[f"{name} +-"] = paired(ours, theirs)
            for name in ("forget", "steps", "alpha", "ess", "cost", "retain exact", "forget exact"):
                figures[name] = float(np.mean([by_seed[seed][name] for seed in seeds]))
        rows.append(Row(f"{task.name}, {objective}, {weighting}", figures))
    return rows


def main(argv: list[str] | None = None) -> list[Row]:
    """Print each run as it ends, then a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with tofu_700.json")
    parser.add_argument("--only", default="", help="only data sets whose name contains this")
    parser.add_argument("--weights", nargs="+", default=[""], help="only weightings whose name contains one of these")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[2.0], help="of the weights")
    parser.add_argument("--objectives", nargs="+", choices=TRIED_FIRST, default=[*TRIED_FIRST])
    parser.add_argument("--matchings", nargs="+", choices=MATCHINGS, default=MATCHINGS)
    parser.add_argument("--first-seed", type=int, default=0, help="of the runs (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each setting (default: %(default)s)")
    parser.add_argument("--kept", type=Path, help="folder of finished trainings and runs, to go on from")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    weightings = [Weighting(method, score, t, every) for t in args.temperatures for method, score, every in WAYS]
    chosen = (UNIFORM, *(each for each in weightings if any(part in str(each) for part in args.weights)))
    found, seeds = [], range(args.first_seed, args.first_seed + args.seeds)
    with tempfile.TemporaryDirectory() as aside:
        for task in [task for task in tasks(args.data) if args.only in task.name]:
            for matching in args.matchings:
                runs = runs_of(task, seeds, matching, args.objectives, chosen, args.kept or Path(aside))
                found += show(f"{task.name}, {matching}: weights, differences from uniform", rows_of(task, runs))
    return found


if __name__ == "__main__":
    main()
