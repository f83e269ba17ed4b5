"""LDS by what an example costs on disk, on both ground truths of retrainings (`DATA/truth`).

Every row is an index on disk: the bytes are those of its shards over the examples, loss, scales and headers included.
Damping is swept, since noisy codecs need more, and shown at its best beside the default's and what `auto` chooses; `budget`
rows say only `bytes_per_example` and leave the rest to the plan.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch

from lorif_core import LoRIF
from tests.benchmarks.table import Row, show
from tests.benchmarks.truths import Truth, digits_mlp, tiny_lm

DAMPINGS = (0.1, 0.3, 0.5, 1.0, 3.0, 10.0)
PROJECTIONS = ("pca", "rademacher", "whitened")
RUNS: dict[str, list[dict[str, Any]]] = {
    "digits": [{"projection_factor": f, "bits": bits} for f in (1, 4, 8) for bits in (16, 8, 4, 2, 1)],
    "tiny_lm": [
        {"storage": storage, "projection_factor": f, "bits": bits}
        for storage, f in (("factors", 1), ("factors", 4), ("dense", 4), ("dense", 8))
        for bits in (16, 8, 4, 2, 1)
    ],
}
BUDGETS = {"digits": (50, 100, 300), "tiny_lm": (210, 420, 850)}


def measure(truth: Truth, options: dict[str, Any]) -> dict[str, float | None]:
    """Bytes an example, and LDS at the default, the chosen and the best damping."""
    with tempfile.TemporaryDirectory() as folder:
        # the whole spectrum: what is compared is what the codec keeps
        fitted = LoRIF(truth.model, truth.objective, curvature_rank=4096, layers=truth.linear, strict=False, **options)
        examples = len(fitted.fit(truth.train, folder).store)
        stored = sum(file.stat().st_size for file in Path(folder, "shards").iterdir()) / examples

        def lds(damping: float | Literal["auto"]) -> float:
            return truth.score(
                LoRIF.load(folder, truth.model, truth.objective, damping=damping).score(truth.query)
            ).value

        found, auto = {damping: lds(damping) for damping in DAMPINGS}, lds("auto")
    best = max(found, key=found.__getitem__)
    return {"bytes": stored, "LDS": found[0.5], "auto LDS": auto, "best LDS": found[best], "best damping": best}


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with truth/digits_mlp* and truth/tiny_lm*")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for truth in (digits_mlp(args.data), tiny_lm(args.data)):
        runs = [options | {"projection": projection} for projection in PROJECTIONS for options in RUNS[truth.name]]
        runs += [
            {"projection": projection, "bytes_per_example": budget}
            for projection in PROJECTIONS
            for budget in BUDGETS[truth.name]
        ]
        for options in runs:
            name = f"{truth.name}, " + ", ".join(
                f"{key.replace('projection_factor', 'f')}={value}" for key, value in options.items()
            )
            if args.only in name:
                rows.append(Row(name, measure(truth, options)))
    return show("LDS by bytes an example (Linear layers, whole spectrum)", rows)


if __name__ == "__main__":
    main()
