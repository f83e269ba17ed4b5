"""What a call of LoRIF leaves behind in the model and the process: nothing, also when it fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lorif_core.attributors.lorif as lorif_module
from lorif_core import LoRIF, StoreError
from tests.lorif_core.against_oracle import (
    OBJECTIVES,
    Stop,
    StoppingLoader,
    batches,
    exact,
    fitted,
    loader,
)
from tests.oracle import zoo


class Watched:
    """A model with a state worth keeping, and a record of that state."""

    def __init__(self) -> None:
        self.case = zoo.build("cnn_batchnorm")
        self.model = self.case.model.train()
        self.model.norm.eval()
        self.model.strided.weight.requires_grad_(False)
        self.model.head.bias.grad = torch.ones(3)
        self.calls = 0
        self.model.head.register_forward_hook(self._count)
        self.before = self.state()

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def state(self) -> dict[str, Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "modes": [m.training for m in self.model.modules()],
            "flags": [p.requires_grad for p in self.model.parameters()],
            "gradients": [None if p.grad is None else p.grad.tolist() for p in self.model.parameters()],
            "hooks": [len(getattr(m, h)) for m in self.model.modules() for h in hooks],
            "attributes": [sorted(vars(m)) for m in self.model.modules()],
            "weights": {k: v.clone().tolist() for k, v in self.model.state_dict().items()},
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "python": random.getstate(),
            "grad mode": torch.is_grad_enabled(),
            "threads": torch.get_num_threads(),
        }

    def check(self, what: str) -> None:
        after = self.state()
        changed = [key for key in self.before if after[key] != self.before[key]]
        assert not changed, f"{what} changed {changed}"


def test_every_call_leaves_the_model_and_the_random_state_as_they_were(tmp_path: Path) -> None:
    watched = Watched()
    case, queries = watched.case, loader(watched.case.query)
    attributor = exact(case, projection="pca", factor_rank=2)
    calls: dict[str, Callable[[], Any]] = {
        "fit": lambda: attributor.fit(loader(case.train), tmp_path),
        "fit again": lambda: attributor.fit(loader(case.train), tmp_path),
        "score": lambda: attributor.score(queries),
        "top_k": lambda: attributor.top_k(queries, 3),
        "self_influence": attributor.self_influence,
        "load": lambda: LoRIF.load(tmp_path, watched.model),
        "score after load": lambda: LoRIF.load(tmp_path, watched.model, damping=0.1).score(queries),
    }
    for what, call in calls.items():
        call()
        watched.check(what)
    assert watched.calls > 0, "the user's own hook did not run"


class Failing(OBJECTIVES["classification"]):
    """Fails at the given call; checks at every call that no weight asks for a gradient."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        random.random(), np.random.rand(), torch.rand(1)
        losses = super().loss(model, batch)
        if self.calls == self.at:
            raise Stop
        return losses


@pytest.mark.parametrize("at", range(1, 9))
def test_an_exception_in_fit_or_score_leaves_everything_as_it_was(at: int, tmp_path: Path) -> None:
    """The exception is still held where the state is compared, as it is in an except block or a notebook."""
    watched = Watched()
    case = watched.case
    failing = LoRIF(watched.model, Failing(at), projection="pca", bits=32)
    with pytest.raises(Stop) as held:
        failing.fit(loader(case.train), tmp_path / "stopped")
    watched.check(f"fit, failing at call {at},")
    assert held.value.__traceback__ is not None
    good = LoRIF(watched.model, Failing(0), projection="pca", bits=32).fit(loader(case.train), tmp_path / "good")
    if at <= 2:
        good.objective = Failing(at)
        for what in (good.score, lambda queries: good.top_k(queries, 2)):
            with pytest.raises(Stop) as held:
                what(loader(case.query, 2))
            watched.check(f"a query failing at call {at}")
            good.objective = Failing(at)


@pytest.mark.parametrize("call", ["score", "top_k"])
def test_an_exception_between_queries_leaves_everything_as_it_was(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged curvature file, a vanished shard, a loader that fails: found while the queries are under way."""
    watched = Watched()
    case = watched.case
    fitted(case, tmp_path)

    def query(attributor: LoRIF, batches: Any) -> None:
        if call == "score":
            attributor.score(batches)
        else:
            attributor.top_k(batches, 2)

    attributor = LoRIF.load(tmp_path, watched.model)
    with pytest.raises(Stop) as held:
        query(attributor, StoppingLoader(batches(case.query, 2), 1, Stop))
    watched.check("a failing loader")

    monkeypatch.setattr(lorif_module, "QUERY_NUMBERS", 1)  # scoring starts between two batches of queries
    shard = tmp_path / attributor.store.manifest.shards[0].file
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(Exception) as held:  # noqa: B017, PT011 - which one is another test's matter
        query(attributor, loader(case.query, 2))
    watched.check("a vanished shard")
    shard.write_bytes(data)

    curvature = tmp_path / "curvature.safetensors"
    curvature.write_bytes(curvature.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError) as held:
        query(LoRIF.load(tmp_path, watched.model), loader(case.query, 2))
    watched.check("a damaged curvature file")
    assert held.value.__traceback__ is not None


@pytest.mark.parametrize("name", ["mlp", "mlp_frozen", "mlp_shared", "mlp_inplace", "cnn", "gpt", "gpt_conv1d", "bag"])
def test_no_weight_gradient_is_ever_computed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight requires a gradient during any backward pass, and .grad stays None."""
    case = zoo.build(name)
    flags = [p.requires_grad for p in case.model.parameters()]
    seen: list[bool] = []
    differentiate, backward = torch.autograd.grad, torch.autograd.backward

    def checked(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            seen.append(any(p.requires_grad for p in case.model.parameters()))
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch.autograd, "grad", checked(differentiate))
    monkeypatch.setattr(torch.autograd, "backward", checked(backward))
    attributor = fitted(case, tmp_path, projection="pca")
    attributor.score(loader(case.query))
    assert seen and not any(seen)
    assert all(p.grad is None for p in case.model.parameters())
    assert flags == [p.requires_grad for p in case.model.parameters()]
