"""What the tests against the oracle share: indexing a zoo case with LoRIF, reading its store back, the oracle's answers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lorif_core import CausalLM, Classification, FactorStore, LoRIF, Objective, Regression
from lorif_core.gradients import read_plan
from lorif_core.lookup import Lookup
from tests.oracle import zoo
from tests.oracle.gradients import all_gradients, to_float64

torch.set_num_threads(1)
OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "causal_lm": CausalLM,
    "regression": Regression,
}
ALL = 1_000_000  # a rank above what any layer has: all of it
Gradients = dict[str, Tensor]


@cache
def expected_gradients(name: str) -> tuple[Gradients, Gradients]:
    """The oracle's {layer: [N, a, b]} of the train rows and of the queries; layers whose gradient is always zero left out."""
    case = zoo.build(name)
    train = all_gradients(case.model, case.loss, case.train_examples, case.layers)
    query = all_gradients(case.model, case.loss, case.query_examples, case.layers)
    used = [layer for layer in case.layers if train[layer].any()]
    return {layer: train[layer] for layer in used}, {layer: query[layer] for layer in used}


@cache
def expected_losses(name: str) -> Tensor:
    """The oracle's loss of every train row [N], float64."""
    case = zoo.build(name)
    model = case.model.double().eval()
    return torch.stack([case.loss(model, to_float64(example)).detach() for example in case.train_examples])


def loader(items: list[Any], batch_size: int = 4) -> DataLoader:
    return DataLoader(items, batch_size=batch_size)


def exact(case: zoo.ZooCase, **options: Any) -> LoRIF:
    """LoRIF without any approximation unless ``options`` say otherwise."""
    nothing_lost = {"projection": "identity", "factor_rank": ALL, "curvature_rank": ALL, "bits": 32}
    strict = case.name != "mlp_unused"
    return LoRIF(case.model, OBJECTIVES[case.objective](), **{**nothing_lost, "strict": strict, **options})


def fitted(case: zoo.ZooCase, path: Path, batch_size: int = 4, **options: Any) -> LoRIF:
    return exact(case, **options).fit(loader(case.train, batch_size), path)


def stored_gradients(path: Path, rows: int = 5) -> Gradients:
    """U V^T of every stored example, {layer: [N, d1, d2]} float64."""
    store = FactorStore.open(path)
    found = {}
    for entry in store.manifest.layers:
        blocks = list(store.blocks(entry.name, rows))
        assert [b.start for b in blocks] == [sum(len(x) for x in blocks[:i]) for i in range(len(blocks))]
        parts = [
            # [n, d1, c] @ [n, c, d2] -> [n, d1, d2]
            b.left.double() if b.right is None else b.left.double() @ b.right.double().mT
            for b in blocks
        ]
        found[entry.name] = torch.cat(parts)
    return found


def projection_sides(attributor: LoRIF) -> dict[str, tuple[Tensor, Tensor]]:
    """(P_in [a, d1], P_out [b, d2]) of every layer as the index has them, identities written out; float64."""
    manifest = attributor.store.manifest
    sides = read_plan(attributor.store.path, manifest, attributor.model).projections.sides
    return {
        entry.name: (
            _written_out(sides[entry.name][0], entry.rows),
            _written_out(sides[entry.name][1], entry.columns),
        )
        for entry in manifest.layers
    }


def _written_out(side: Tensor | Lookup | None, size: int) -> Tensor:
    if isinstance(side, Lookup):
        return side.rows(torch.arange(size)[None], torch.eye(size)[None]).dense()[0].T.double()
    return (torch.eye(size) if side is None else side).double()


class Stop(Exception):
    """Raised by the tests inside a call."""


class StoppingLoader:
    """A loader that fails before the given batch, when it is read for the ``reading``-th time."""

    def __init__(self, given: list[Any], before: int, error: type[BaseException], reading: int = 1) -> None:
        self.batches, self.before, self.error, self.reading = given, before, error, reading
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        self.read += 1
        for number, batch in enumerate(self.batches):
            if self.read >= self.reading and number == self.before:
                raise self.error
            yield batch


def batches(items: list[Any], size: int) -> list[Any]:
    """A loader that draws no random numbers of its own."""
    return [default_collate(items[i : i + size]) for i in range(0, len(items), size)]
