"""Fit time of an index over the time of one training epoch (forward + backward with weight gradients), same batches.

A fit is everything `LoRIF.fit` does: the pca pass, indexing, curvature, writing. Epochs are run before, between and after
the fits, and each fit is compared with the mean of its two neighbours: the machine's speed drifts.
"""

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
    "4 layers, d=256, T=256": (4, 256, 256, 1024),
    "2 layers, d=128, T=64": (2, 128, 64, 2048),
}
FACTORS = (4, 8)


def epoch(model: GPT, loader: DataLoader) -> float:
    """CPU seconds of one pass with weight gradients; no optimizer step."""
    begin = time.process_time()
    for ids in loader:
        model.zero_grad(set_to_none=True)
        CausalLM().loss(model, ids).sum().backward()
    return time.process_time() - begin


def fit(model: GPT, loader: DataLoader, factor: int) -> float:
    """CPU seconds of one fit into an empty folder."""
    model.zero_grad(set_to_none=True)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        LoRIF(model, CausalLM(), projection_factor=factor).fit(loader, folder)
        return time.process_time() - begin


def measure(shape: tuple[int, int, int, int], repeats: int) -> tuple[list[float], dict[int, list[float]]]:
    """(epochs in CPU seconds, ratios of the fits by projection factor): other processes do not count."""
    layers, width, length, examples = shape
    torch.manual_seed(0)
    model = GPT(layers, width, length)
    loader = DataLoader(torch.randint(0, 512, (examples, length)), batch_size=16)
    epoch(model, DataLoader(torch.randint(0, 512, (64, length)), batch_size=16))  # warm-up
    epochs, ratios = [epoch(model, loader)], {factor: [] for factor in FACTORS}
    for _ in range(repeats):
        for factor in FACTORS:
            seconds = fit(model, loader, factor)
            epochs.append(epoch(model, loader))
            ratios[factor].append(2 * seconds / (epochs[-2] + epochs[-1]))
    return epochs, ratios


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="only shapes whose name contains this")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for name, shape in SHAPES.items():
        if args.only not in name:
            continue
        epochs, ratios = measure(shape, args.repeats)
        figures: dict[str, float | None] = {"epoch cpu s": statistics.median(epochs)}
        for factor, found in ratios.items():
            figures |= {
                f"f={factor}": statistics.median(found),
                f"f={factor} least": min(found),
                f"f={factor} most": max(found),
            }
        rows.append(Row(f"{name}, {shape[3]} examples", figures))
    return show("index fit time / training epoch (pca, r=256, one thread)", rows)


if __name__ == "__main__":
    main()
