"""LDS on a ready ground truth of retrainings (`DATA/truth/digits_mlp*`), by projection, with bytes an example."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from lorif_core import GradDot, LoRIF
from tests.benchmarks.table import Row, show
from tests.benchmarks.truths import digits_mlp

RUNS = {
    "LoRIF, identity": (LoRIF, {"projection": "identity"}),
    "LoRIF, pca, f=4": (LoRIF, {"projection": "pca"}),
    "LoRIF, pca, f=8": (LoRIF, {"projection": "pca", "projection_factor": 8}),
    "LoRIF, rademacher, f=4": (LoRIF, {"projection": "rademacher"}),
    "LoRIF, rademacher, f=8": (LoRIF, {"projection": "rademacher", "projection_factor": 8}),
    "gradient dot product": (GradDot, {"projection": "identity"}),
}


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with truth/digits_mlp.safetensors and _lds.npz"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    truth = digits_mlp(args.data)
    rows = []
    for name, (method, options) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            attributor = method(truth.model, truth.objective, **options).fit(truth.train, folder)
            fitted = time.process_time()
            scores = attributor.score(truth.query)
            scored = time.process_time()
            found = truth.score(scores)
            shards = sum(file.stat().st_size for file in Path(folder, "shards").iterdir())
        figures = {"LDS": found.value, "low": found.low, "high": found.high}
        figures |= {
            "bytes/example": attributor.store.bytes_per_example,
            "shard bytes/example": shards / scores.shape[1],
        }
        rows.append(Row(name, figures | {"fit cpu s": fitted - begin, "score cpu s": scored - fitted}))
    return show("LDS on digits, 100 half-data retrainings (95 % interval over queries)", rows)


if __name__ == "__main__":
    main()
