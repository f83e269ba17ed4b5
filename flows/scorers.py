"""The states of the model that score a pool: the model, or several states of its warm-up (LESS), each with its index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.files import digest_file, digest_of
from flows.modelling import checkpoint_of, index_of
from flows.runner import Finished


@dataclass(frozen=True)
class Scorer:
    """A state of the model.

    Attributes:
        title: of the stage that indexes the pool with it.
        model: whose weights it has.
        epoch: of the warm-up, after which it is; None: the model that is loaded, or the only one.
        state: the checkpoint with what its optimizer had gathered; None: it is not asked for.
        learning_rate: by which its scores count: of one that scores alone 1.
    """

    title: str
    model: Finished
    epoch: int | None = None
    state: Path | None = None
    learning_rate: float = 1.0

    def arguments(self, index: Finished, adam: bool) -> dict[str, Any]:
        """What a stage that scores gets (`flows.stages.scorers`)."""
        return {
            "checkpoint": checkpoint_of(self.model),
            "index_path": index_of(index),
            "state": str(self.state) if adam else None,
            "learning_rate": self.learning_rate,
        }

    def version(self, index: Finished, grown_from: str | None, rows: int) -> dict[str, Any]:
        """What the summary says of it: whatever decides its scores, by digest."""
        return {
            "epoch": self.epoch,
            "learning_rate": self.learning_rate,
            "model": self.model.digest,
            "checkpoint_sha256": digest_file(self.state or self.model.files["checkpoint"]),
            "digest": index.digest,
            "manifest_sha256": digest_file(index.files["manifest"]),
            "grown_from": grown_from,
            "rows": index.values.get("rows", rows),
        }


def scorers_of(model: Finished, epochs: Sequence[int]) -> list[Scorer]:
    """The states of a model that score, the model itself last.

    Args:
        model: loaded, or the result of a warm-up that kept its state after ``epochs``.
        epochs: ascending, the last one of the warm-up last; none: nothing was kept, or the model is loaded.
    """
    if not epochs:
        return [Scorer("index", model, state=model.files["checkpoint"])]
    rates = model.values["learning_rates"] if len(epochs) > 1 else {}
    found = []
    for epoch in epochs:
        name, last = f"epoch-{epoch}", epoch == epochs[-1]
        state = model.files[name]
        # The last state has the weights of the model: its index is that of a run in which the model scores alone.
        earlier = replace(model, digest=digest_of([model.digest, epoch]), files={"checkpoint": state})
        title = "index" if last else f"index-{name}"
        found.append(Scorer(title, model if last else earlier, epoch, state, rates.get(str(epoch), 1.0)))
    return found
