"""The states a warm-up keeps: those of the training, with Adam's moments, also where it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curation.errors import DataError, ModelError
from curation.models import TabularClassifier
from curation.selection.adam import Moments
from curation.selection.layer_weights import weights_by_layer
from curation.selection.states import States, check_adam, state_file
from curation.training import TrainOptions, train
from tests.curation.test_training import blobs, interrupted, make

MODEL = {"input_shape": (4,), "num_classes": 2, "schedule": "cosine", "hidden": [3]}


def test_an_interrupted_warm_up_keeps_the_states_of_a_whole_one(tmp_path: Path) -> None:
    whole, stopped = make(TabularClassifier, **MODEL), make(interrupted(TabularClassifier), **MODEL)
    options, epochs = TrainOptions(4), [2, 4]
    result = train(
        whole, blobs(), options, tmp_path / "whole", callbacks=[States(tmp_path / "whole", epochs, adam=True)]
    )
    assert {path.name for path in (tmp_path / "whole").glob("epoch-*")} == {state_file(epoch) for epoch in epochs}
    stopped.at = (3, 1)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, blobs(), options, tmp_path / "run", callbacks=[States(tmp_path / "run", epochs, adam=True)])
    resumed = make(TabularClassifier, **MODEL)
    train(resumed, blobs(), options, tmp_path / "run", callbacks=[States(tmp_path / "run", epochs, adam=True)])
    for epoch in epochs:
        one, other = (torch.load(tmp_path / name / state_file(epoch), weights_only=True) for name in ("whole", "run"))
        assert one["learning_rate"] == other["learning_rate"] > 0 and "callbacks" not in one
        for name, value in Moments.of(one, whole).roots.items():
            assert torch.equal(value, Moments.of(other, resumed).roots[name])
        assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    last = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, one["state_dict"][name]) for name, value in last.items())


def test_an_optimizer_without_adams_moments_is_refused() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    check_adam([torch.optim.AdamW(parameters)])
    for wrong, said in (
        ([torch.optim.SGD(parameters, lr=0.1)], "trained with SGD of 1 groups"),
        ([torch.optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:]}])], "Adam of 2 groups"),
        ([], "no optimizer"),
    ):
        with pytest.raises(ModelError, match=said):
            check_adam(wrong)


def test_layers_are_weighed_by_name_or_glob_the_last_counts() -> None:
    layers = ["encoder.0", "encoder.1", "head"]
    assert weights_by_layer({"encoder*": 0, "encoder.1": 2.0}, layers) == {"encoder.0": 0, "encoder.1": 2.0}
    with pytest.raises(DataError, match="'tail' fits no layer of the index; it has encoder.0, encoder.1, head"):
        weights_by_layer({"tail": 1.0}, layers)
    with pytest.raises(DataError, match="every layer has the factor 0"):
        weights_by_layer({"*": 0}, layers)
