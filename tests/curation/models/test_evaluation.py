from types import SimpleNamespace

import pytest
import torch
from torch import nn

from curation.errors import ModelError
from curation.models.evaluation import check_batch, evaluate, wilson


class WithLogits(nn.Module):
    """Answers with an object, has dropout, and a part that is in eval mode while the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.frozen = nn.Linear(3, 4), nn.Dropout(0.5), nn.Identity()
        self.train()
        self.frozen.eval()

    def forward(self, inputs):
        return SimpleNamespace(logits=self.dropout(self.frozen(self.linear(inputs))))


def test_against_one_row_at_a_time():
    torch.manual_seed(0)
    model, inputs, codes = WithLogits(), torch.randn(11, 3), torch.randint(4, (11,))
    found = evaluate(model, [(inputs[:7], codes[:7]), (inputs[7:], codes[7:])])
    rows = [model.linear(row) for row in inputs]
    assert found["n"] == 11
    assert found["accuracy"] == sum(int(row.argmax() == code) for row, code in zip(rows, codes, strict=True)) / 11
    losses = [-row.log_softmax(0)[code].item() for row, code in zip(rows, codes, strict=True)]
    assert found["loss"] == pytest.approx(sum(losses) / 11, rel=1e-5)
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(round(found["accuracy"] * 11), 11)
    assert [module.training for module in (model, model.linear, model.dropout, model.frozen)] == [
        True,
        True,
        True,
        False,
    ]


def test_modes_are_restored_after_an_error():
    model = WithLogits()
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(2, 99), torch.zeros(2, dtype=torch.int64))])
    assert model.training
    assert not model.frozen.training


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        evaluate(nn.Linear(1, 2), [])


def test_wilson_solves_its_equation():
    # The bounds are the shares p at which the observed share lies 1.96 standard errors sqrt(p (1 - p) / n) away.
    for successes, trials in [(1, 10), (8, 10), (350, 360)]:
        for bound in wilson(successes, trials):
            error = (bound * (1 - bound) / trials) ** 0.5
            assert abs(successes / trials - bound) == pytest.approx(1.959964 * error, rel=1e-5)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def batch(rows: int = 5, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 3), torch.arange(rows) % classes


def test_a_model_that_classifies_the_rows_passes_and_keeps_its_modes():
    model = WithLogits()
    check_batch(model, batch())
    check_batch(model, batch(), num_classes=4)
    check_batch(model, batch(classes=2))
    assert model.training and not model.frozen.training


@pytest.mark.parametrize(
    ("model", "num_classes", "words"),
    [
        (
            nn.Linear(9, 4),
            None,
            r"Linear fails on the data, rows of shape \[3\], torch.float32: RuntimeError: .*shapes",
        ),
        (nn.Linear(3, 4).double(), None, "RuntimeError: .*dtype"),
        (nn.LSTM(3, 4), None, "LSTM fails on the data, .*AttributeError: 'tuple' object has no attribute 'logits'"),
        (nn.Linear(3, 3), None, r"expected logits of shape \[2, 4\] for 2 rows of .* got \[2, 3\]. Check num_classes"),
        (nn.Linear(3, 5), 4, r"expected logits of shape \[2, 4\].* got \[2, 5\]"),
        (nn.Unflatten(1, (1, 3)), None, r"got \[2, 1, 3\]"),
    ],
)
def test_a_model_that_does_not_classify_the_rows(model, num_classes, words):
    with pytest.raises(ModelError, match=words):
        check_batch(model, batch(), num_classes)
