"""kfac projections against the Kronecker product written out, in float64.

Axes: a / b input and output side of a layer, N training examples, Q queries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import CausalLM, Classification, LoRIF, Regression
from lorif_core.objectives import draw
from lorif_core.whitening import DAMPING, whitening

WHOLE: dict[str, Any] = {"projection_factor": 1, "factor_rank": 64, "bits": 32}


class LanguageModel(nn.Module):
    """An embedding, a scale and two linear layers, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.scale = nn.Embedding(19, 18), nn.LayerNorm(18)
        self.hidden, self.head = nn.Linear(18, 20), nn.Linear(20, 19, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.scale(self.tokens(ids)))))


@pytest.fixture
def texts() -> tuple[LanguageModel, DataLoader[Tensor], DataLoader[Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(19, (30, 7))
    return LanguageModel(), DataLoader(ids[:24], batch_size=10), DataLoader(ids[24:], batch_size=4)  # type: ignore[arg-type]


def damped_inverse(moment: Tensor) -> Tensor:
    return torch.linalg.inv(moment + DAMPING * moment.trace() / len(moment) * torch.eye(len(moment)))


def test_whitening_is_an_inverse_root() -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 6, dtype=torch.float64) * torch.arange(1, 7)
    moment = rows.T @ rows / 50
    root = whitening(moment, 6, "side").double()
    torch.testing.assert_close(root @ root.T, damped_inverse(moment), rtol=1e-5, atol=1e-6)
    values, vectors = torch.linalg.eigh(moment)
    largest = vectors[:, -2:] / (values[-2:] + DAMPING * values.mean()) @ vectors[:, -2:].T
    two = whitening(moment, 2, "side").double()
    torch.testing.assert_close(two @ two.T, largest, rtol=1e-5, atol=1e-6)
    assert not whitening(torch.zeros(4, 4, dtype=torch.float64), 2, "none").any()


def test_dot_products_are_the_preconditioned_scores(
    texts: tuple[LanguageModel, DataLoader[Tensor], DataLoader[Tensor]], tmp_path: Path
) -> None:
    """With everything kept (f = 1, full rank): g_q^T (A + l)^-1 (x) (S + l')^-1 g_i, layer by layer, the product in full."""
    model, train, query = texts
    fitted = LoRIF(model, CausalLM(), projection="kfac_true", **WHOLE).fit(train, tmp_path / "kfac")
    plain = LoRIF(model, CausalLM(), projection="identity", **WHOLE).fit(train, tmp_path / "plain")
    gradients = [[{k: v.double() for k, v in batch.items()} for batch in plain.gradients(x)] for x in (train, query)]
    stored, asked = ({name: torch.cat([b[name] for b in part]) for name in part[0]} for part in gradients)

    ids = torch.cat(list(train))
    double = LanguageModel().double()
    double.load_state_dict(model.state_dict())
    inputs, outputs = {}, {}

    def keep(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        inputs[module], outputs[module] = args[0].detach(), output

    for module in double.children():
        module.register_forward_hook(keep)
    logits = double(ids)
    functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="sum").backward()

    expected = torch.zeros(6, 24, dtype=torch.float64)
    for name, module in double.named_children():
        if name == "scale":
            whole = stored[name]
            first = torch.einsum("nab,ncb->ac", whole, whole) / 24
            second = torch.einsum("nab,nac->bc", whole, whole) / whole.square().sum()
        else:
            x = inputs[module].flatten(0, 1)
            x = functional.one_hot(x.flatten(), 19).double() if name == "tokens" else x
            x = functional.pad(x, (0, 1), value=1.0) if name == "hidden" else x
            dy = outputs[module].grad
            assert dy is not None
            dy = dy.flatten(0, 1)
            first, second = x.T @ x / 24, dy.T @ dy / (24 * 7)
        inverse = torch.kron(damped_inverse(first), damped_inverse(second))
        expected += asked[name].flatten(1) @ inverse @ stored[name].flatten(1).T
    torch.testing.assert_close(
        fitted.score(query).double(), expected, rtol=2e-3, atol=1e-3 * float(expected.abs().max())
    )


@pytest.mark.parametrize("projection", ["kfac", "kfac_true"])
def test_no_curvature_is_fitted(
    texts: tuple[LanguageModel, DataLoader[Tensor], DataLoader[Tensor]], tmp_path: Path, projection: Any
) -> None:
    """Loaded or not, with whatever damping, scores are the same."""
    model, train, query = texts
    fitted = LoRIF(model, CausalLM(), projection=projection, projection_factor=2).fit(train, tmp_path / "a")
    scores = fitted.score(query)
    assert fitted.store.manifest.curvature is None
    torch.testing.assert_close(LoRIF.load(tmp_path / "a", model, damping=7.0, curvature_rank=3).score(query), scores)
    assert (fitted.self_influence() > 0).all()
    assert fitted.top_k(query, 3).scores.shape == (6, 3)


def test_whitened_has_a_curvature_too(
    texts: tuple[LanguageModel, DataLoader[Tensor], DataLoader[Tensor]], tmp_path: Path
) -> None:
    model, train, query = texts
    fitted = LoRIF(model, CausalLM(), projection="whitened", damping="auto", **WHOLE).fit(train, tmp_path)
    assert fitted.store.manifest.curvature is not None
    assert torch.isfinite(fitted.score(query)).all()


def test_sampled_labels_give_the_fisher_matrix() -> None:
    """E (p - onehot)(p - onehot)^T = diag p - p p^T, whatever the true labels are."""
    torch.manual_seed(0)
    logits = torch.randn(1, 5).expand(20000, 5).clone().requires_grad_()
    batch = (logits, torch.zeros(20000, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    loss = Classification().sampled_loss(nn.Identity(), batch, generator)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    chances = logits[0].detach().softmax(0)
    torch.testing.assert_close(
        gradient.T @ gradient / 20000, chances.diag() - chances.outer(chances), atol=0.01, rtol=0.0
    )


def test_sampled_tokens_leave_ignored_positions_out() -> None:
    ids = torch.randint(9, (2, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 2:4] = -100
    model = nn.Embedding(9, 9)
    loss = CausalLM().sampled_loss(
        lambda input_ids: model(input_ids), {"input_ids": ids, "labels": labels}, torch.Generator().manual_seed(0)
    )
    output = model.weight
    gradient = torch.autograd.grad(loss[0], output)[0]
    reached = {int(ids[0, t]) for t in (0, 3, 4)}  # positions 1 and 2 predict what is ignored
    assert {int(i) for i in gradient.abs().sum(1).nonzero().flatten()} == reached


def test_draws_follow_the_predictions_and_the_generator() -> None:
    logits = torch.log(torch.tensor([0.7, 0.1, 0.2])).expand(4000, 2, 3)
    first, second = (draw(logits, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (4000, 2)
    torch.testing.assert_close(
        torch.bincount(first.flatten()) / 8000, torch.tensor([0.7, 0.1, 0.2]), atol=0.02, rtol=0.0
    )


def test_objectives_that_cannot_sample_take_the_true_labels() -> None:
    batch = (torch.randn(4, 2), torch.randn(4, 2))
    regression = Regression()
    sampled = regression.sampled_loss(nn.Identity(), batch, torch.Generator())
    torch.testing.assert_close(sampled, regression.loss(nn.Identity(), batch))


def test_vectors_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(30, 20), torch.randint(3, (30,)))
    model = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 3))
    fitted = LoRIF(model, Classification(), projection="kfac", projection_factor=2)
    loader = DataLoader(data, batch_size=30)
    scores = fitted.fit(loader, tmp_path).score(loader)
    assert scores.shape == (30, 30)
    assert (scores.diagonal() > 0).all()
