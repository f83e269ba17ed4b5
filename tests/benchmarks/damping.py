"""LDS of a damping sweep and of damping="auto", and of whitening projections, on two ground truths of retrainings."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lorif_core import LoRIF
from lorif_core.whitening import PRECONDITIONED
from tests.benchmarks.table import Row, show
from tests.benchmarks.truths import Truth, digits_mlp, tiny_lm

SWEEP = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
EVERY = 10**6
"""A curvature rank that is all of them."""
DIGITS: tuple[dict[str, Any], ...] = (
    {"projection": "pca"},
    {"projection": "identity"},
    {"projection": "pca", "projection_factor": 8},
    {"projection": "whitened"},
    {"projection": "kfac"},
    {"projection": "kfac", "projection_factor": 1},
    {"projection": "kfac_true"},
)
TEXTS: tuple[dict[str, Any], ...] = tuple(
    {"projection": projection, "projection_factor": factor, "factor_rank": rank}
    for rank, factors in ((1, (4, 1, 2, 8)), (64, (4, 2, 8)))
    for factor in factors
    for projection in ("pca", "whitened", "kfac")
)


def rows(truth: Truth, options: dict[str, Any], ranks: tuple[int, ...]) -> list[Row]:
    """One index, a row for each curvature rank."""
    name = f"{truth.name}, " + " ".join(str(value) for value in options.values())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        fitted = LoRIF(truth.model, truth.objective, strict=False, curvature_rank=0, **options).fit(truth.train, folder)
        seconds = time.process_time() - begin
        figures: dict[str, Any] = {"bytes/example": fitted.store.bytes_per_example}

        def lds(**curvature: Any) -> float:
            return truth.score(LoRIF.load(folder, truth.model, **curvature).score(truth.query)).value

        if options["projection"] in PRECONDITIONED:
            return [Row(name, figures | {"plain": lds(), "index cpu s": seconds})]
        for rank in ranks:
            # the index is finished: only the curvature is fitted, and kept, so that the sweep rescales it
            LoRIF(truth.model, truth.objective, strict=False, curvature_rank=rank, **options).fit(truth.train, folder)
            sweep = {f"{damping:g}": lds(damping=damping) for damping in SWEEP}
            best = max(sweep.values())
            begin = time.process_time()
            auto = lds(damping="auto")
            spent = time.process_time() - begin
            label = f"{name}, r={'all' if rank == EVERY else rank}"
            row = Row(label, figures | {"auto": auto, "best": best, "auto/best": auto / best} | sweep)
            found.append(Row(label, row.figures | {"index cpu s": seconds, "auto cpu s": spent}))
    return found


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the folder truth/")
    parser.add_argument("--ranks", type=int, nargs="+", default=[256, EVERY], help="curvature ranks")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = []
    for truth, settings in zip((digits_mlp(args.data), tiny_lm(args.data)), (DIGITS, TEXTS), strict=True):
        for options in settings:
            found += show(f"Damping on {truth.name}", rows(truth, options, tuple(args.ranks)))
    return found


if __name__ == "__main__":
    main()
