"""LDS on a ready ground truth of retrainings (`DATA/truth/digits_mlp*`), by projection, with bytes an example."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import Classification, GradDot, LoRIF
from lorif_core.evaluation import linear_datamodeling_score
from tests.benchmarks.table import Row, show

RUNS = {
    "LoRIF, identity": (LoRIF, {"projection": "identity"}),
    "LoRIF, pca, f=4": (LoRIF, {"projection": "pca"}),
    "LoRIF, pca, f=8": (LoRIF, {"projection": "pca", "projection_factor": 8}),
    "LoRIF, rademacher, f=4": (LoRIF, {"projection": "rademacher"}),
    "LoRIF, rademacher, f=8": (LoRIF, {"projection": "rademacher", "projection_factor": 8}),
    "gradient dot product": (GradDot, {"projection": "identity"}),
}


class MLP(nn.Module):
    """The network whose retrainings are the ground truth."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,437 training and 360 query rows, split as the ground truth was."""
    data = load_digits()
    x, y = (data.data / 16.0).astype("float32"), data.target.astype("int64")
    parts = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    train_x, query_x, train_y, query_y = (torch.from_numpy(part) for part in parts)
    return TensorDataset(train_x, train_y), TensorDataset(query_x, query_y)


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with truth/digits_mlp.safetensors and _lds.npz"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    truth = np.load(args.data / "truth" / "digits_mlp_lds.npz")
    model = MLP()
    model.load_state_dict(load_file(args.data / "truth" / "digits_mlp.safetensors"))
    train, query = (DataLoader(part, batch_size=64) for part in digits())
    rows = []
    for name, (method, options) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            attributor = method(model, Classification(), **options).fit(train, folder)
            fitted = time.process_time()
            scores = attributor.score(query)
            scored = time.process_time()
            found = linear_datamodeling_score(scores.numpy(), truth["masks"], -truth["neg_loss"])
            shards = sum(file.stat().st_size for file in Path(folder, "shards").iterdir())
        figures = {"LDS": found.value, "low": found.low, "high": found.high}
        figures |= {
            "bytes/example": attributor.store.bytes_per_example,
            "shard bytes/example": shards / len(train.dataset),
        }
        rows.append(Row(name, figures | {"fit cpu s": fitted - begin, "score cpu s": scored - fitted}))
    return show("LDS on digits, 100 half-data retrainings (95 % interval over queries)", rows)


if __name__ == "__main__":
    main()
