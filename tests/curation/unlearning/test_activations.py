from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from curation.unlearning.activations import by_activations, plan_of
from curation.unlearning.alignment import AlignmentError
from curation.unlearning.ways import Aligner
from tests.curation.unlearning.models import Language, classifier, points, texts
from tests.curation.unlearning.test_alignment import compare, exact


class Normed(Language):
    """With a normalisation, and position embeddings that run once for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.norm = nn.Embedding(7, 8), nn.LayerNorm(8)

    def forward(self, input_ids, attention_mask=None):
        states = self.embedding(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        return self.head(self.norm(states + torch.tanh(self.query(states))) + self.value(states))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("model", "rows"),
    [(Language(), texts), (Normed(), texts), (classifier().float(), points)],
    ids=["language", "normed", "classifier"],
)
def test_equals_exact_dots_and_cosines(model, rows, cosine):
    forget, retain = rows(7), rows(9, seed=1)
    if rows is points:
        for each in (forget, retain):
            each.dataset.inputs = each.dataset.inputs.float()
    dots, opposition, cosines = exact(model, forget, retain)
    compare(by_activations(model, forget, retain, cosine=cosine), cosines if cosine else dots, opposition, 1e-5)


def test_only_what_is_trained_counts():
    model = Normed()
    model.head.requires_grad_(False)
    model.places.requires_grad_(False)
    forget, retain = texts(7), texts(9, seed=1)
    _, opposition, cosines = exact(model, forget, retain)
    compare(by_activations(model, forget, retain, cosine=True), cosines, opposition, 1e-5)


def test_batches_make_no_difference():
    model = Language()
    one = by_activations(model, texts(7), texts(9, seed=1), cosine=True)
    other = by_activations(model, texts(7, size=7), texts(9, seed=1, size=2), cosine=True)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-4, atol=1e-6)


def test_a_plan_serves_the_model_after_its_weights_have_moved():
    model, forget, retain = Normed(), texts(6), texts(9, seed=1)
    plan = plan_of(model, forget)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    again = by_activations(model, forget, retain, cosine=True, plan=plan)
    compare(again, exact(model, forget, retain)[2], again.opposition, 1e-5)


def test_the_model_is_left_as_it_was():
    model = Language().train()
    model.head.requires_grad_(False)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    by_activations(model, texts(4), texts(5, seed=1))
    assert model.training
    assert [p.requires_grad for p in model.head.parameters()] == [False, False]
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())


class Odd(Language):
    """With a layer whose gradient is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Bilinear(2, 2, 2)


def test_unknown_layers_and_nothing_to_stay_are_refused():
    with pytest.raises(AlignmentError, match="odd: Bilinear is not supported[^$]*two_forwards"):
        by_activations(Odd(), texts(4), texts(5, seed=1))
    with pytest.raises(AlignmentError, match="got none"):
        by_activations(Language(), texts(2), texts(0))


def test_the_way_asked_for_is_taken_and_auto_is_what_the_model_allows():
    rows = texts(4), texts(5, seed=1)
    assert [Aligner(*rows)(model).way for model in (Language(), Odd())] == ["activations", "two_forwards"]
    for way in ("activations", "two_forwards", "forward_mode"):
        assert Aligner(*rows, way)(Language()).way == way
    cosines = Aligner(*rows, cosine=True)
    model = Language()
    assert np.abs(cosines(model).values).max() <= 1
    np.testing.assert_array_equal(cosines(model).values, cosines(model).values)
    either = [Aligner(*rows, cosine=None)(each) for each in (model, Odd())]
    np.testing.assert_array_equal(either[0].values, cosines(model).values)
    assert either[1].way == "two_forwards"
    with pytest.raises(AlignmentError, match="take activations"):
        Aligner(*rows, "two_forwards", cosine=True)
    with pytest.raises(AlignmentError, match="odd: Bilinear"):
        Aligner(*rows, cosine=True)(Odd())
