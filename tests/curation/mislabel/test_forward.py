from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curation.errors import ModelError, TrainingError
from curation.mislabel import forward_pass
from curation.mislabel.bags import TokenBags
from curation.mislabel.forward import SKETCH_WIDTH
from curation.models import ImageClassifier, TextClassifier

ROWS = 23


class Loader:
    """Batches of given tensors, in order."""

    def __init__(self, inputs: Tensor, labels: Tensor, size: int = 5) -> None:
        self.inputs, self.labels, self.size = inputs, labels, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.labels), self.size):
            yield self.inputs[start : start + self.size], self.labels[start : start + self.size]


def images(size: int = 8) -> Loader:
    torch.manual_seed(0)
    return Loader(torch.rand(ROWS, 1, size, size), torch.randint(0, 4, (ROWS,)))


def test_mlp_inputs_of_every_layer_and_logits() -> None:
    model, loader = ImageClassifier((1, 8, 8), 4, arch="mlp", hidden=(12, 6)), images()
    forward = forward_pass(model, loader)
    assert [values.shape for values in forward.inputs] == [(ROWS, 64), (ROWS, 12), (ROWS, 6)]
    np.testing.assert_array_equal(forward.inputs[0], loader.inputs.flatten(1).numpy())
    np.testing.assert_array_equal(forward.labels, loader.labels.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(forward.logits, model(loader.inputs).numpy(), atol=1e-6)
        head = model.head(torch.from_numpy(forward.features))
    np.testing.assert_allclose(head.numpy(), forward.logits, atol=1e-6)


def test_convolutions_are_left_out_and_wide_inputs_sketched() -> None:
    forward = forward_pass(ImageClassifier((1, 16, 16), 4, arch="cnn", hidden=(9,)), images(16))
    assert [values.shape[1] for values in forward.inputs] == [SKETCH_WIDTH, 9]


def test_sketch_keeps_distances_and_is_the_same_every_time() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(ROWS, 4000)).astype(np.float32))
    model = nn.Sequential(nn.Linear(4000, 3), nn.ReLU(), nn.Linear(3, 2))
    loader = Loader(rows, torch.zeros(ROWS, dtype=torch.int64))
    sketched = forward_pass(model, loader).inputs[0]
    np.testing.assert_array_equal(sketched, forward_pass(model, loader).inputs[0])
    ratio = np.square(sketched[1:] - sketched[0]).sum(axis=1) / np.square(rows[1:] - rows[0]).sum(axis=1).numpy()
    assert 0.8 < ratio.min() < ratio.max() < 1.2


def test_sketch_adds_each_column_to_one_of_few() -> None:
    width = SKETCH_WIDTH + 90
    model = nn.Sequential(nn.Linear(width, 3), nn.ReLU(), nn.Linear(3, 2))
    sketched = forward_pass(model, Loader(torch.eye(width), torch.zeros(width, dtype=torch.int64), size=100)).inputs[0]
    assert isinstance(sketched, np.ndarray)
    np.testing.assert_array_equal((sketched != 0).sum(axis=1), 1)
    np.testing.assert_array_equal(np.abs(sketched).sum(axis=1), 1)
    assert (sketched != 0).sum(axis=0).max() == 2
    assert set(np.unique(sketched)) == {-1, 0, 1}


def test_embedding_ids_become_bags_without_padding() -> None:
    ids = torch.tensor([[4, 4, 2, 0], [7, 0, 0, 0], [2, 4, 9, 9]])
    forward = forward_pass(TextClassifier(2, vocab_buckets=10, dim=3), Loader(ids, torch.tensor([0, 1, 1]), size=2))
    bags = forward.inputs[0]
    assert isinstance(bags, TokenBags)
    expected = np.array([[5, 0, 3], [0, 1, 0], [3, 0, 6]]) / np.sqrt(np.outer([5, 1, 6], [5, 1, 6]))
    np.testing.assert_allclose(bags.gram().numpy(), expected, atol=1e-6)
    assert forward.features.shape == (3, 3)


class Positions(nn.Module):
    """Ids of two kinds of embedding, one of them of the positions and so of no row; answers with ``.logits``."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> SimpleNamespace:
        states = self.words(ids) + self.places(torch.arange(ids.shape[1])[None])
        return SimpleNamespace(logits=self.head(torch.tanh(self.mix(states)).mean(dim=1)))


def test_layers_that_do_not_see_rows_are_left_out_whatever_the_batch() -> None:
    loader = Loader(
        torch.randint(0, 9, (7, 3)), torch.zeros(7, dtype=torch.int64), size=3
    )  # the last batch has one row
    assert forward_pass(Positions(), loader).names == ("words", "head")


def test_batches_of_different_length() -> None:
    class Ragged(Loader):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield torch.tensor([[1, 2, 3]]), torch.tensor([0])
            yield torch.tensor([[1, 2], [3, 3]]), torch.tensor([1, 0])

    bags = forward_pass(Positions(), Ragged(torch.zeros(3), torch.zeros(3))).inputs[0]
    np.testing.assert_allclose(bags.gram().diagonal().numpy(), 1.0, atol=1e-6)


def test_model_is_left_as_it_was_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(64, 5), nn.Dropout(), nn.Linear(5, 4))
    model[1].eval()
    rows = images()
    loader = Loader(rows.inputs.flatten(1), rows.labels)
    forward_pass(model, loader)
    loader.inputs[7] = torch.nan
    with pytest.raises(TrainingError, match="logits.*index 7"):
        forward_pass(model, loader)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.LogSoftmax(dim=1)),
        nn.Sequential(nn.Flatten(), nn.ReLU()),
    ],
)
def test_logits_must_come_out_of_a_linear_layer(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="must come straight out of an nn.Linear"):
        forward_pass(model, images())


def test_logits_of_another_shape_and_an_empty_loader() -> None:
    with pytest.raises(ModelError, match=r"expected logits of shape \[5, K\]"):
        forward_pass(nn.Linear(8, 4), images())
    with pytest.raises(ValueError, match="no rows"):
        forward_pass(nn.Linear(8, 4), Loader(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)))
