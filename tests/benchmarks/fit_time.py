"""Fit time of an index over the time of one training epoch (forward + backward with weight gradients), same batches."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from torch.utils.data import DataLoader

from lorif_core import CausalLM, LoRIF
from tests.benchmarks.table import Row, show
from tests.benchmarks.transformer import GPT

SHAPES = {
    "2 layers, d=128, T=64": (2, 128, 64, 2048),
    "4 layers, d=256, T=256": (4, 256, 256, 1024),
}


def epoch(model: GPT, loader: DataLoader) -> float:
    """CPU seconds of one pass with weight gradients; no optimizer step."""
    begin = time.process_time()
    for ids in loader:
        model.zero_grad(set_to_none=True)
        CausalLM().loss(model, ids).sum().backward()
    return time.process_time() - begin


def measure(shape: tuple[int, int, int, int], repeats: int) -> list[tuple[float, float]]:
    """(epoch, fit) in CPU seconds, in turn: other processes on the machine do not count."""
    layers, width, length, examples = shape
    torch.manual_seed(0)
    model = GPT(layers, width, length)
    ids = torch.randint(0, 512, (examples, length))
    loader = DataLoader(ids, batch_size=16)
    found = []
    epoch(model, loader)  # warm-up
    for _ in range(repeats):
        seconds = epoch(model, loader)
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            LoRIF(model, CausalLM()).fit(loader, folder)
            found.append((seconds, time.process_time() - begin))
    return found


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for name, shape in SHAPES.items():
        runs = measure(shape, args.repeats)
        rows.append(
            Row(
                f"{name}, {shape[3]} examples",
                {
                    "epoch cpu s": statistics.median(a for a, _ in runs),
                    "fit cpu s": statistics.median(b for _, b in runs),
                    "fit / epoch": statistics.median(b / a for a, b in runs),
                },
            )
        )
    return show("index fit time (default options, one thread)", rows)


if __name__ == "__main__":
    main()
