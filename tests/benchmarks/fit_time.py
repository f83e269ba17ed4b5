"""Fit time of an index over the time of one training epoch (forward, backward with weight gradients, AdamW), same batches.

A fit is everything `LoRIF.fit` does, one call after the other: `projections`, `rows` (indexing, writing) and `curvature`.
`frozen pass` is what no fit can do without, a forward and an activation-only backward pass of which nothing is kept. Larger
factors and random projections cost less, and tell less. Epochs are run before, between and after them, and each is compared
with the mean of its two neighbours: the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader

from lorif_core import CausalLM, LoRIF
from lorif_core.capture import frozen, tapped
from lorif_core.coverage import cover
from lorif_core.options import Projection
from tests.benchmarks.table import Row, show
from tests.benchmarks.transformer import GPT

SHAPES = {
    "4 layers, d=256, T=256": (4, 256, 256, 1024),
    "2 layers, d=128, T=64": (2, 128, 64, 2048),
}
FITS: list[tuple[Projection, int]] = [("pca", 4), ("pca", 8), ("pca", 16), ("rademacher", 16)]


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of this process: other processes do not count."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def epoch(model: GPT, loader: DataLoader) -> None:
    """One pass of plain training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for ids in loader:
        optimizer.zero_grad(set_to_none=True)
        CausalLM().loss(model, ids).mean().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def frozen_pass(model: GPT, loader: DataLoader) -> None:
    """The pass an index is made of, without an index."""
    with frozen(model), tapped(model, cover(model).layers, lambda layer, x: None, lambda layer, kept, dy: None) as tape:
        for ids in loader:
            tape(CausalLM().loss, ids)


def fit(model: GPT, loader: DataLoader, projection: Projection, factor: int) -> dict[str, float]:
    """CPU seconds of each part of one fit into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        attributor = LoRIF(model, CausalLM(), projection=projection, projection_factor=factor)
        build = attributor.build(loader, folder)
        return {
            "projections": cpu_seconds(build.head),
            "rows": cpu_seconds(build.run),
            "curvature": cpu_seconds(lambda: attributor.finish(build.path)),
        }


def measure(shape: tuple[int, int, int, int], repeats: int) -> tuple[list[float], dict[str, list[dict[str, float]]]]:
    """(epochs in CPU seconds, the ratios to them of each part of everything else)."""
    layers, width, length, examples = shape
    torch.manual_seed(0)
    model = GPT(layers, width, length)
    loader = DataLoader(torch.randint(0, 512, (examples, length)), batch_size=16)
    epoch(model, DataLoader(torch.randint(0, 512, (64, length)), batch_size=16))  # warm-up
    epochs: list[float] = []
    ratios: dict[str, list[dict[str, float]]] = {}

    def add(name: str, seconds: dict[str, float]) -> None:
        epochs.append(cpu_seconds(lambda: epoch(model, loader)))
        beside = (epochs[-2] + epochs[-1]) / 2
        ratios.setdefault(name, []).append({part: value / beside for part, value in seconds.items()})

    epochs.append(cpu_seconds(lambda: epoch(model, loader)))
    for _ in range(repeats):
        add("frozen pass", {"all": cpu_seconds(lambda: frozen_pass(model, loader))})
        for projection, factor in FITS:
            parts = fit(model, loader, projection, factor)
            add(f"{projection}, f={factor}", {"all": sum(parts.values())} | parts)
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
        rows.append(Row(f"{name}: epoch of {shape[3]}", {"cpu s": statistics.median(epochs)}))
        for what, found in ratios.items():
            whole = [one["all"] for one in found]
            figures = {"ratio": statistics.median(whole), "least": min(whole), "most": max(whole)}
            parts = {part: statistics.median(one[part] for one in found) for part in found[0] if part != "all"}
            rows.append(Row(f"{name}: {what}", {**figures, **parts}))
    return show("index fit time / training epoch (default curvature, one thread, CPU seconds)", rows)


if __name__ == "__main__":
    main()
