"""What weighing the records to be forgotten is worth: GUARD against uniform and random weights at matched forgetting.

A seed draws the first weights of a model, the order of its training, who is to be forgotten, and the order in which the
unlearning sees records and rows that stay; everything but the weights is equal within a seed. Each run is measured at a
matched forgetting: where its records' mean loss is at least `level`, a share (`SHARES`) of that of people the model never
read of, and the rows that stay have suffered least (`matched.cheapest_stop`, by interpolating the weights between two
looks). Differences are a run's figure minus that of uniform weights of the same seed: mean over the seeds and half the 95 %
interval (paired Student's t). `seeds`: how many of them reached the level, under both weights, and were not refused.

`retain`: mean loss of all rows that stay (lower is better). `utility`: harmonic mean of probability and ROUGE-L recall, of
truth ratio too where there are wrong answers (people, not TOFU's file), of rows that stay (higher is better). `p10`: the
tenth of the records' losses that is forgotten least: what sparing records costs. `ess`: effective share of the records.
`cost`: CPU seconds of all scoring over those of the steps; for all other figures the machine may be busy.

People: 21 of 140 rows, 3 of 20 embedded people, ten more never learnt. TOFU: 18 of 78 rows, the 6 shortest of each of 3
authors of forget10, beside 10 retained ones, 3 others of forget10 never learnt. Options are the defaults but for `alpha`
(`ALPHA`): with 1 hardly any row that stays is answered when the records are forgotten, whatever the weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorif_core.atomic import write_bytes
from tests.benchmarks.forgetting import Task, tasks
from tests.benchmarks.matched import paired
from tests.benchmarks.table import Row, show
from tests.benchmarks.weighted_runs import Weighting, run, subject

SEEDS = 8
ALPHA = 4.0
"""Weight of the rows that stay, for both objectives."""
OBJECTIVES = ("difference", "npo")
UNIFORM = Weighting("uniform")
WEIGHTINGS = (
    UNIFORM,
    *(
        Weighting(method, score, temperature, every)
        for temperature in (2.0, 1.0, 4.0)
        for method, score, every in (
            ("random", "dot", 10),
            ("guard", "dot", 10),
            ("guard", "cosine", 10),
            ("guard-dynamic", "dot", 10),
            ("guard-dynamic", "cosine", 5),
        )
    ),
)
COMPARED = ("retain", "utility", "p10")
Runs = dict[tuple[str, Weighting], dict[int, dict[str, float]]]
"""(objective, weighting) -> seed -> figures; empty where weights were refused or the level was not reached."""


def runs_of(task: Task, seeds: int, weightings: tuple[Weighting, ...], kept: Path) -> Runs:
    """Every run of a task; those that lie in the folder ``kept`` are read."""
    found: Runs = {(objective, each): {} for objective in OBJECTIVES for each in weightings}
    for seed in range(seeds):
        files = {key: kept / f"{task.name}-{key[0]}-{seed}-{key[1]}.json" for key in found}
        if not all(file.exists() for file in files.values()):
            request = task.request(seed)
            asked = subject(request.data, request.records, task.model(request.data, seed, kept))
            for (objective, weighting), file in files.items():
                if not file.exists():
                    figures = run(asked, objective, {"alpha": ALPHA}, weighting, seed)
                    write_bytes(file, json.dumps(figures).encode())
                    print(f"{file.stem}:", *(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
        for key, file in files.items():
            found[key][seed] = json.loads(file.read_bytes())
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
            for name in ("ess", "cost", "steps", "retain exact", "forget exact", "level"):
                figures[name] = float(np.mean([by_seed[seed][name] for seed in seeds]))
        rows.append(Row(f"{task.name}, {objective}, {weighting}", figures))
    return rows


def main(argv: list[str] | None = None) -> list[Row]:
    """Print each run as it ends, then a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with tofu_700.json")
    parser.add_argument("--only", default="", help="only data sets whose name contains this")
    parser.add_argument("--weights", default="", help="only weightings whose name contains this, and uniform")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each setting (default: %(default)s)")
    parser.add_argument("--kept", type=Path, help="folder of finished trainings and runs, to go on from")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    chosen = tuple(each for each in WEIGHTINGS if each == UNIFORM or args.weights in str(each))
    found = []
    with tempfile.TemporaryDirectory() as aside:
        for task in tasks(args.data):
            if args.only in task.name:
                kept = args.kept or Path(aside)
                title = f"{task.name}: weights at matched forgetting, differences from uniform"
                found += show(title, rows_of(task, runs_of(task, args.seeds, chosen, kept)))
    return found


if __name__ == "__main__":
    main()
