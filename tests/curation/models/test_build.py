import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule

from curation.errors import ModelError
from curation.models import ImageClassifier, build_model

HERE = __name__
IMAGE = "curation.models.ImageClassifier"
DEFAULTS = {"input_shape": (1, 8, 8), "num_classes": 10, "vocab_buckets": 99}


class Own(LightningModule):
    path_arguments = ("weights",)

    def __init__(self, num_classes: int, width: int, weights: str = "") -> None:
        super().__init__()
        self.num_classes, self.width, self.weights = num_classes, width, weights


def test_data_fills_what_the_user_left_out():
    model = build_model(f"{HERE}.Own", {"width": 3}, DEFAULTS)
    assert (model.num_classes, model.width) == (10, 3)
    assert build_model(f"{HERE}.Own", {"width": 3, "num_classes": 2}, DEFAULTS).num_classes == 2


def test_relative_paths_start_from_the_root():
    arguments = {"width": 3, "num_classes": 2, "weights": "w.bin"}
    assert build_model(f"{HERE}.Own", arguments, root=Path("/configs")).weights == "/configs/w.bin"
    assert build_model(f"{HERE}.Own", arguments).weights == "w.bin"


def test_what_does_not_fit_is_an_error_of_the_model():
    with pytest.raises(ModelError, match=r"has no Onw \(did you mean 'Own'\?\)"):
        build_model(f"{HERE}.Onw")
    with pytest.raises(ModelError, match="unknown parameter 'depth'\n.*missing parameter 'num_classes'\n"):
        build_model(f"{HERE}.Own", {"depth": 3})
    with pytest.raises(ModelError, match="refused its parameters .*could not convert string to float: 'fast'"):
        build_model(IMAGE, {"lr": "fast"}, DEFAULTS)


def test_numbers_as_yaml_reads_them():
    model = build_model(IMAGE, {"lr": "1e-4"}, DEFAULTS)
    assert model.configure_optimizers().param_groups[0]["lr"] == 1e-4


def test_weights_come_from_the_seed_and_leave_the_random_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    models = [build_model(IMAGE, {}, DEFAULTS, seed) for seed in (0, 0, 1)]
    assert isinstance(models[0], ImageClassifier)
    first, same, other = (model.head.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
