"""What selections are worth: the shipped configurations of `curate select`, run as a user runs them.

Reviews: the pool is the training rows of Amazon, tweets and New York Times texts together, the target is one of the three,
and a tenth of the pool is chosen. Figures are accuracies, of models fine-tuned on the choice, on target rows that neither
chose nor were trained on; those of random, BM25, embedding similarity and highest loss stand beside. Differences are paired by
seed, with the 95 % interval of Student's t; `best` is the control with the highest mean. A seed draws the first weights, the
order of training and the random control's rows; the other choices and the measured rows are the same for all.

Digits: of the pool 30 % have wrong labels and 30 % are of another task; shares of both among the tenth that is chosen. A seed
draws the split and which rows are spoilt.

    python -m tests.benchmarks.selection --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from curation.data.mixed_digits import SOURCES, MixedDigits
from flows.cli import main as curate
from tests.benchmarks.table import Row, show

CONFIGS = Path(__file__).parents[2] / "configs"
DOMAINS = ("amazon", "tweets", "nyt")
PLANTED = 4
"""Seeds of the digits; the first is the configuration's own."""


def selected(config: str, name: str, workspace: Path, *options: str) -> dict[str, Any]:
    """The summary of a run of a shipped configuration.

    Raises:
        RuntimeError: the run failed; it has said why.
    """
    file = CONFIGS / f"{config}.yaml"
    if curate(["select", "--config", str(file), "--name", name, "--workspace", str(workspace), *options]):
        raise RuntimeError(f"{name}: the run failed, see above")
    (path,) = (workspace / "runs").glob(f"{name}-*/summary.json")
    summary: dict[str, Any] = json.loads(path.read_bytes())
    return summary


def pooled(folder: Path, path: Path) -> Path:
    """One table of the three domains, with the column ``source``, written to ``path``."""
    parts = [pl.read_parquet(folder / f"reviews_{name}.parquet") for name in DOMAINS]
    named = [part.with_columns(source=pl.lit(name)) for name, part in zip(DOMAINS, parts, strict=True)]
    pl.concat(named).write_parquet(path)
    return path


def reviews(table: Path, domain: str, workspace: Path) -> Row:
    """Accuracies for one target domain."""
    options = ["--data.init_args.path", str(table), "--target.where.values", f"[{domain}]"]
    summary = selected("select_reviews", f"reviews-{domain}", workspace, *options)
    rates, ahead = summary["target_accuracy"], summary["target_advantage"]
    best = max(ahead, key=lambda control: rates[control]["mean"])
    figures: dict[str, float | int | str | None] = {name: found["mean"] for name, found in rates.items()}
    for title, control in (("random", "random"), ("best", best)):
        found = ahead[control]
        figures |= {f"over {title}": found["mean"], f"{title} low": found["low"], f"{title} high": found["high"]}
    chosen = pl.read_parquet(summary["files"]["selected"])
    of_pool = pl.read_parquet(table, columns=["example_id", "source"])
    inside = chosen.join(of_pool, "example_id").filter(source=domain)
    return Row(domain, figures | {"best": best, "of the domain": len(inside) / len(chosen)})


def planted(seed: int, workspace: Path) -> Row:
    """Shares of the spoilt rows among those chosen."""
    options = ["--data.init_args.seed", str(seed), "--compare.seeds", "0"]
    summary = selected("select_digits", f"digits-{seed}", workspace, *options)
    chosen = pl.read_parquet(summary["files"]["selected"])
    of_pool = MixedDigits(seed=seed).examples.select("example_id", "source")
    sources = chosen.join(of_pool, "example_id", maintain_order="left")["source"]
    shares: dict[str, float | int | str | None] = {name: float((sources == name).mean()) for name in SOURCES[1:]}
    return Row(f"seed {seed}", {"chosen": len(chosen), **shares})


def main(argv: list[str] | None = None) -> list[Row]:
    """Run, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with reviews_*.parquet; without it only the digits are run")
    parser.add_argument("--seeds", type=int, default=PLANTED, help="seeds of the digits (default: %(default)s)")
    parser.add_argument("--workspace", type=Path, help="kept, to go on from; default: a temporary one")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as aside:
        workspace = args.workspace or Path(aside)
        found = show("digits: spoilt rows among those chosen", [planted(seed, workspace) for seed in range(args.seeds)])
        if args.data:
            table = pooled(args.data, Path(aside, "reviews.parquet"))
            rows = [reviews(table, domain, workspace) for domain in DOMAINS]
            found += show("reviews: accuracy on held-out target rows", rows)
    return found


if __name__ == "__main__":
    main()
