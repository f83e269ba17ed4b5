"""LogIX as its examples use it: random LoRA projections (LoGRA), raw curvature, gradients saved, all texts scored.

Its fixed damping of 1e-10 is for other scales; a tenth of the mean eigenvalue is its documented alternative (None).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from logix import LogIX, LogIXScheduler
from logix.statistic import Log
from logix.utils import merge_logs
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.benchmarks.peer_runners.task import BATCH, Task, measured

RANK = 16
"""Of each side of a projection, as many numbers an example as bergson's 16."""


def index(task: Task, out: Path, variant: str) -> Callable[[], Tensor]:
    """Log the gradients and their covariance; `variant` is how the projections are chosen: random or pca."""
    config = out / "logix.yaml"
    config.write_text(yaml.safe_dump({"root_dir": str(out), "lora": {"init": variant, "rank": RANK}}))
    run = LogIX("peers", str(config))
    run.watch(task.model, name_filter=["self_attn", "mlp"])

    def passed(first: int, ids: Tensor) -> None:
        with run(data_id=[str(first + row) for row in range(len(ids))], mask=torch.ones_like(ids)):
            task.model.zero_grad()
            logits = task.model(ids).logits[:, :-1]
            cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()

    for _ in LogIXScheduler(run, lora=variant, hessian="raw", save="grad"):
        for number, ids in enumerate(task.train.split(BATCH)):
            passed(BATCH * number, ids)
        run.finalize()

    def score() -> Tensor:
        run.eval()
        run.setup({"grad": [Log]})
        logs = []
        for number, ids in enumerate(task.query.split(BATCH)):
            passed(BATCH * number, ids)
            logs.append(run.get_log(copy=True))
        loader = run.build_log_dataloader(batch_size=BATCH)
        found: Tensor = run.compute_influence_all(merge_logs(logs), loader)["influence"]
        return found

    return score


if __name__ == "__main__":
    measured(index)
