"""bergson: a projected gradient store, as `bergson build` makes it, searched by its Attributor.

What its commands do after reading model and data, called in this process, so that its imports and launches are not timed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from bergson import Attributor, CollectorComputer, IndexConfig, collect_gradients
from bergson.data import allocate_batches, load_module_gradients
from bergson.hessians.autocorrelation import AutocorrelationCollector
from bergson.utils.worker_utils import create_processor
from datasets import Dataset
from torch import Tensor

from tests.benchmarks.peer_runners.task import Task, measured

SIDE = 16
"""The projection that its TrackStar and its README use."""


def store(task: Task, ids: Tensor, path: Path, *, curvature: bool) -> None:
    """Gradients of texts, or their autocorrelation, at `path`."""
    length = ids.shape[1]
    data = Dataset.from_dict({"input_ids": ids.tolist(), "length": [length] * len(ids)})
    config = IndexConfig(run_path=str(path), projection_dim=SIDE)
    config.partial_run_path.mkdir(parents=True)
    processor = create_processor(task.model, config)
    batches = allocate_batches(data["length"][:], config.token_batch_size)
    if curvature:
        collector = AutocorrelationCollector(
            model=task.model.base_model, data=data, path=str(config.partial_run_path), processor=processor
        )
        computer = CollectorComputer(task.model, data, collector=collector, batches=batches, cfg=config)
        computer.run_with_collector_hooks(desc="curvature")
    else:
        collect_gradients(task.model, data, processor, config, batches=batches)
    shutil.move(config.partial_run_path, path)


def index(task: Task, out: Path, variant: str) -> Callable[[], Tensor]:
    """Store the gradients, and with `autocorrelation` (not `dot product`) fit the curvature in a second pass."""
    # as its own loading of a model leaves it
    task.model.requires_grad_(False)
    task.model.get_input_embeddings().requires_grad_(True)
    curvature = variant == "autocorrelation"
    if curvature:
        store(task, task.train, out / "curvature", curvature=True)
    store(task, task.train, out / "index", curvature=False)

    def score() -> Tensor:
        store(task, task.query, out / "queries", curvature=False)
        attributor = Attributor(out / "index", hessian_path=out / "curvature" if curvature else None)
        gradients = load_module_gradients(out / "queries")
        queries = {name: torch.from_numpy(gradients[name].copy()) for name in attributor.ordered_modules}
        scores, rows = attributor.search(queries, None)
        return torch.empty_like(scores).scatter_(1, rows, scores)

    return score


if __name__ == "__main__":
    measured(index)
