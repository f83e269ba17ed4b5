"""LoRIF with its default options: of every layer, or of those that LogIX and bergson attribute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from lorif_core import CausalLM, LoRIF
from tests.benchmarks.peer_runners.task import BATCH, Task, measured

LAYERS = {"all layers": None, "linear layers": ["*.self_attn.*_proj", "*.mlp.*_proj"]}


def index(task: Task, out: Path, variant: str) -> Callable[[], Tensor]:
    """Fit, then score all texts."""
    attributor = LoRIF(task.model, CausalLM(), layers=LAYERS[variant])
    attributor.fit(DataLoader(task.train, batch_size=BATCH), out)
    return lambda: attributor.score(DataLoader(task.query, batch_size=BATCH))


if __name__ == "__main__":
    measured(index)
