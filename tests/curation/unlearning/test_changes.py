from __future__ import annotations

import pytest
import torch

from curation.errors import TrainingError
from curation.unlearning.changes import weight_changes
from tests.curation.unlearning.models import classifier


def test_changes_are_counted_and_measured():
    before = {name: p.clone() for name, p in classifier().state_dict().items()}
    after = {name: p.clone() for name, p in before.items()}
    after["0.weight"][0, 0] += 3
    after["2.bias"][1] -= 4
    found = weight_changes(before, after)
    assert (found.changed, found.tensors) == (2, 4)
    assert found.norms == pytest.approx({"0.weight": 3, "2.bias": 4})
    assert found.norm == pytest.approx(5)


def test_no_change_is_an_error():
    state = classifier().state_dict()
    with pytest.raises(TrainingError, match="changed none of the 4 tensors"):
        weight_changes(state, {name: p.clone() for name, p in state.items()})
    with pytest.raises(ValueError, match="two models"):
        weight_changes(state, {"x": torch.ones(1)})
