import numpy as np
import pytest
import torch

from curation.models import TabularClassifier, load_model
from curation.training import TrainOptions, train
from tests.curation.models.toy import TensorData, blobs


def test_scale_is_exact_for_features_far_from_zero():
    rows = torch.from_numpy(np.random.default_rng(0).normal([0, 1e6, 3], [1, 2, 0], (500, 3))).float()
    model = TabularClassifier((3,), 2)
    model.fit_scale([(rows[:100], None), (rows[100:], None)])
    truth = rows.double()
    torch.testing.assert_close(model.mean, truth.mean(0).float())
    torch.testing.assert_close(model.deviation, torch.tensor([*truth.std(0, correction=0)[:2].float(), 1.0]))


def test_no_rows_to_scale_by():
    with pytest.raises(ValueError, match="no rows"):
        TabularClassifier((3,), 2).fit_scale([])


def test_scale_is_learnt_once_and_saved(tmp_path):
    data, model = blobs(scale=1e4), TabularClassifier((4,), 2, hidden=[8], lr=2e-2)
    result = train(model, data, TrainOptions(4), tmp_path / "a")
    assert result.metrics["val_accuracy"] > 0.85  # unscaled, these features cannot be learnt in these steps
    learnt = model.mean.clone()
    torch.testing.assert_close(learnt, data.splits[0].tensors[0].mean(0))

    other = tuple(tensor[:20] for tensor in data.splits[0].tensors)
    train(model, TensorData(other, other), TrainOptions(1), tmp_path / "b")
    assert torch.equal(model.mean, learnt)
    loaded = load_model("curation.models.TabularClassifier", result.checkpoint)
    assert torch.equal(loaded.mean, learnt)
    assert loaded.fitted
