from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from curation.unlearning.alignment import AlignmentError, by_factors, by_forward_mode, by_two_forwards
from curation.unlearning.rows import Rows
from lorif_core import CausalLM, Classification, LoRIF
from tests.curation.unlearning.models import Language, Points, Texts, classifier, collate, points, texts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row_loss(model: nn.Module, row: object) -> torch.Tensor:
    """Mean token loss of one row, written anew."""
    if isinstance(row, torch.Tensor):
        logits = model(row[None])[0]
        steps = [-logits[t].log_softmax(-1)[row[t + 1]] for t in range(1, len(row) - 1)]
        return torch.stack(steps).mean()
    inputs, code = row
    return -model(inputs[None])[0].log_softmax(-1)[code]


def exact(model: nn.Module, forget: Rows, retain: Rows) -> tuple[np.ndarray, float, np.ndarray]:
    """a [n], the cosine of the mean gradients, and each record's cosine with v: one gradient at a time."""

    def gradient(row: object) -> torch.Tensor:
        trained = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(row_loss(model, row), trained, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, grads, strict=True)]
        return torch.cat([part.flatten() for part in parts]).double()

    records = torch.stack([gradient(forget.dataset[i]) for i in forget.positions])
    v = torch.stack([gradient(retain.dataset[i]) for i in retain.positions]).mean(0)
    f = records.mean(0)
    cosines = (records @ v) / (records.norm(dim=1) * v.norm())
    return (records @ v).numpy(), float(f @ v / (f.norm() * v.norm())), cosines.numpy()


def compare(found, wanted, opposition, tolerance):
    scale = np.abs(wanted).max()
    worst = np.argsort(-np.abs(found.values - wanted))[:3]
    shown = [(int(i), float(found.values[i]), float(wanted[i])) for i in worst]
    assert np.abs(found.values - wanted).max() < tolerance * scale, shown
    assert found.opposition == pytest.approx(opposition, abs=tolerance)


@pytest.mark.parametrize("way", [by_two_forwards, by_forward_mode])
def test_without_an_index_equals_exact_dots_in_float64(way):
    for model, forget, retain in (
        (Language().double(), texts(7), texts(9, seed=1)),
        (classifier(), points(7), points(9, seed=1)),
    ):
        wanted, opposition, _ = exact(model, forget, retain)
        compare(way(model, forget, retain), wanted, opposition, 1e-5)


@pytest.mark.parametrize("way", [by_two_forwards, by_forward_mode])
def test_float32_is_within_a_thousandth(way):
    model, forget, retain = Language(), texts(7), texts(9, seed=1)
    wanted, opposition, _ = exact(Language().double(), forget, retain)
    compare(way(model, forget, retain), wanted, opposition, 1e-3)


@pytest.mark.parametrize("way", [by_two_forwards, by_forward_mode])
def test_the_model_is_left_as_it_was(way):
    model = Language().train()
    model.head.requires_grad_(False)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    way(model, texts(4), texts(5, seed=1))
    assert model.training
    assert [p.requires_grad for p in model.head.parameters()] == [False, False]
    assert all(p.requires_grad for p in model.query.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("cosine", [False, True])
def test_factors_of_a_whole_index_equal_exact_dots(tmp_path, cosine):
    data = Texts(12)
    model = Language()
    loader = torch.utils.data.DataLoader(data, 4, collate_fn=collate)
    options = {"projection": "identity", "factor_rank": 8, "bits": 32, "curvature_rank": 1}
    store = LoRIF(model, CausalLM(), **options).fit(loader, tmp_path / "index").store
    forget, retain = np.array([7, 0, 3]), np.array([1, 2, 5, 9, 11])
    tokens = np.array([len(row) - 2 for row in data.rows])
    dots, opposition, cosines = exact(Language().double(), Rows(data, forget, collate), Rows(data, retain, collate))
    compare(by_factors(store, forget, retain, tokens, cosine=cosine), cosines if cosine else dots, opposition, 1e-4)


def test_factors_of_a_classifier_equal_exact_dots(tmp_path):
    data = Points(10)
    data.inputs = data.inputs.float()
    model = classifier().float()
    loader = torch.utils.data.DataLoader(data, 4)
    store = LoRIF(model, Classification(), projection="identity", bits=32).fit(loader, tmp_path / "index").store
    forget, retain = np.array([2, 4]), np.array([0, 1, 9])
    dots, opposition, _ = exact(model, Rows(data, forget, collate), Rows(data, retain, collate))
    compare(by_factors(store, forget, retain, np.ones(10)), dots, opposition, 1e-4)


def test_positions_outside_the_index_are_refused(tmp_path):
    store = (
        LoRIF(classifier().float(), Classification())
        .fit([(torch.randn(4, 6), torch.zeros(4).long())], tmp_path / "i")
        .store
    )
    with pytest.raises(AlignmentError, match="forget: expected positions among the 4 rows"):
        by_factors(store, np.array([4]), np.array([0]), np.ones(4))
    with pytest.raises(AlignmentError, match="retain: expected positions"):
        by_factors(store, np.array([1]), np.array([], dtype=int), np.ones(4))


def test_nothing_to_stay_is_refused():
    with pytest.raises(AlignmentError, match="got none"):
        by_two_forwards(Language(), texts(2), texts(0))
