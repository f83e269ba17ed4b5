import contextlib
import os
import random
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule
from torch import nn
from torch.nn import functional

from curation.errors import ModelError, TrainingError
from curation.models import ImageClassifier, TabularClassifier, load_model, seeded
from curation.training import TrainOptions, evaluate, train
from tests.curation.models.toy import TensorData, blobs, digits

EPOCHS = 4
STEPS = 4  # of 32 rows each, in the 120 training rows of `blobs`


class Own(LightningModule):
    """A user's module: its own hyper-parameters, dropout, an object with `.logits`, nothing logged.

    ``scheduler`` is one that steps once an epoch; the rows of every step are kept in ``seen``.
    """

    def __init__(self, scheduler: str | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.scheduler = scheduler
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.seen: list[torch.Tensor] = []

    def forward(self, rows):
        return SimpleNamespace(logits=self.net(rows))

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        return functional.cross_entropy(self(batch[0]).logits, batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("monitored", functional.cross_entropy(self(batch[0]).logits, batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)
        if self.scheduler is None:
            return optimizer
        scheduler = {
            "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
            "plateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
        }[self.scheduler]()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "monitored"}}


class Stops:
    """Mixed into a module: at one step of one epoch, something happens instead of a training step."""

    at = (2, 1)  # epoch and step, from 0

    def happen(self, loss):
        return loss

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return self.happen(loss) if (self.current_epoch, batch_idx) == self.at else loss


def make(cls: type[LightningModule], *arguments, **named) -> LightningModule:
    with seeded(11):
        return cls(*arguments, **named)


def interrupted(cls: type[LightningModule]) -> type[LightningModule]:
    """``cls`` as it is when the user presses Ctrl-C; the name stays, for it is the same model to whoever resumes it."""

    class Interrupted(Stops, cls):
        def happen(self, loss):
            os.kill(os.getpid(), signal.SIGINT)
            return loss

    Interrupted.__qualname__, Interrupted.__module__ = cls.__qualname__, cls.__module__
    return Interrupted


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_digits_to_a_checkpoint_that_loads(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    model, data = make(ImageClassifier, (1, 8, 8), 10), digits()
    result = train(model, data, TrainOptions(5), tmp_path / "run")
    assert result.metrics["val_accuracy"] > 0.95
    assert result.metrics["val_accuracy_low"] < result.metrics["val_accuracy"] < result.metrics["val_accuracy_high"]
    assert result.metrics["val_n"] == 360
    assert [epoch["epoch"] for epoch in result.history] == list(range(1, 6))
    assert result.history[-1]["train_loss"] == result.metrics["train_loss"] < result.history[0]["train_loss"]
    assert result.history[-1]["val_accuracy"] == pytest.approx(result.metrics["val_accuracy"])
    assert result.history[-1]["val_loss"] == pytest.approx(result.metrics["val_loss"], rel=1e-5)
    assert 0 < result.seconds < 60

    assert result.checkpoint == tmp_path / "run" / "model.ckpt"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"model.ckpt", "last.ckpt"}
    assert not list((tmp_path / "cwd").iterdir())
    assert not model.training
    loaded = load_model("curation.models.ImageClassifier", result.checkpoint)
    assert_same_weights(loaded, model)
    assert evaluate(loaded, data.val_dataloader())["accuracy"] == result.metrics["val_accuracy"]


@pytest.mark.parametrize("generator", [True, False], ids=["loader with a generator", "loader without one"])
def test_same_seed_same_weights_and_the_callers_random_state_stays(tmp_path, generator):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    models = [make(Own) for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        train(model, blobs(generator=generator), TrainOptions(2, seed=seed), tmp_path / str(number))
        assert torch.equal(torch.get_rng_state(), before[0])
        torch.rand(3)  # what is drawn between two trainings has no part in the second
        before = torch.get_rng_state(), *before[1:]
    assert_same_weights(models[0], models[1])
    assert not torch.equal(models[0].net[0].weight, models[2].net[0].weight)
    first, second = torch.stack(models[0].seen[:3]), torch.stack(models[0].seen[STEPS : STEPS + 3])
    assert not torch.equal(first, second)  # every epoch has its own order
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize(
    ("cls", "arguments", "generator"),
    [
        (Own, {"scheduler": None}, False),
        (Own, {"scheduler": "step"}, True),
        (Own, {"scheduler": "plateau"}, True),
        (TabularClassifier, {"input_shape": (4,), "num_classes": 2, "schedule": "cosine"}, True),
    ],
)
def test_ctrl_c_and_the_same_again_is_as_if_nothing_had_happened(tmp_path, cls, arguments, generator):
    data, options, handler = blobs(generator=generator), TrainOptions(EPOCHS), signal.getsignal(signal.SIGINT)
    whole = make(cls, **arguments)
    expected = train(whole, data, options, tmp_path / "whole")

    stopped = make(interrupted(cls), **arguments)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, data, options, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.ckpt"}

    resumed = make(cls, **arguments)
    result = train(resumed, data, options, tmp_path / "run")
    assert_same_weights(resumed, whole)
    assert result.history == expected.history
    assert result.metrics == expected.metrics
    if cls is Own:
        assert all(torch.equal(one, other) for one, other in zip(resumed.seen, whole.seen[-2 * STEPS :], strict=True))

    again = make(cls, **arguments)
    finished = train(again, data, options, tmp_path / "run")
    assert finished == result  # nothing left to do, the clock included
    assert_same_weights(again, whole)


def test_interrupted_before_the_first_epoch_is_over(tmp_path):
    whole, resumed = make(Own), make(Own)
    stopped = make(interrupted(Own))
    stopped.at = (0, 2)
    train(whole, blobs(), TrainOptions(2), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(stopped, blobs(), TrainOptions(2), tmp_path / "run")
    train(resumed, blobs(), TrainOptions(2), tmp_path / "run")
    assert_same_weights(resumed, whole)


def test_sigterm_ends_it_with_its_own_exit_code(tmp_path):
    class Terminated(Stops, Own):
        def happen(self, loss):
            os.kill(os.getpid(), signal.SIGTERM)
            return loss

    with pytest.raises(SystemExit) as stopped:
        train(make(Terminated), blobs(), TrainOptions(EPOCHS), tmp_path)
    assert stopped.value.code == 143
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt"}


def test_half_a_file_of_a_killed_run_is_not_taken_for_a_state(tmp_path):
    (tmp_path / ".last.ckpt.1.tmp").write_bytes(b"half")
    result = train(make(Own), blobs(), TrainOptions(1), tmp_path)
    assert len(result.history) == 1
    assert not (tmp_path / ".last.ckpt.1.tmp").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_names_epoch_and_step(tmp_path, bad):
    class Explodes(Stops, Own):
        def happen(self, loss):
            return loss * bad

    with pytest.raises(TrainingError, match=rf"loss is {bad} at epoch 3, step 2 of {STEPS}\. Try a lower lr"):
        train(make(Explodes), blobs(), TrainOptions(EPOCHS), tmp_path)
    assert not (tmp_path / "model.ckpt").exists()


def test_a_model_that_does_not_classify_the_rows_is_refused_before_training(tmp_path):
    with pytest.raises(ModelError, match=r"TabularClassifier fails on the data, rows of shape \[4\]"):
        train(make(TabularClassifier, (3,), 2), blobs(), TrainOptions(1), tmp_path)
    data = blobs()
    data.classes = [0, 1]
    with pytest.raises(ModelError, match=r"expected logits of shape \[2, 2\].*got \[2, 3\]"):
        train(make(TabularClassifier, (4,), 3), data, TrainOptions(1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_validation_loss_that_is_not_finite(tmp_path):
    data = blobs()
    features, codes = data.splits[1].tensors
    data = TensorData(data.splits[0].tensors, (features.fill_(torch.inf), codes))
    with pytest.raises(TrainingError, match="validation loss is nan after epoch 1"):
        train(make(Own), data, TrainOptions(2), tmp_path)


def test_state_of_another_training_is_refused(tmp_path):
    train(make(Own), blobs(), TrainOptions(1), tmp_path)
    with pytest.raises(
        TrainingError, match=r"another training: .*scheduler.*'step'.*; max_epochs was '1', is '2'.*Delete it"
    ):
        train(make(Own, "step"), blobs(), TrainOptions(2), tmp_path)


def test_data_are_told_apart_by_their_digest(tmp_path):
    class Digested(TensorData):
        name = "a" * 8

        def digest(self):
            return self.name

    data = Digested(*(split.tensors for split in blobs().splits))
    train(make(Own), data, TrainOptions(1), tmp_path)
    data.name = "b" * 8
    with pytest.raises(TrainingError, match="data was 'aaaaaaaa', is 'bbbbbbbb'"):
        train(make(Own), data, TrainOptions(1), tmp_path)


def test_damaged_state_is_named(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match=r"last\.ckpt is not a Lightning checkpoint, or is damaged.*Delete it"):
        train(make(Own), blobs(), TrainOptions(1), tmp_path)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write into .*file/run: Not a directory"):
        train(make(Own), blobs(), TrainOptions(1), tmp_path / "file" / "run")


@contextlib.contextmanager
def files_of_at_most(size: int):
    """As on a full disk: the system refuses what goes beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_nothing_half_written(tmp_path):
    with files_of_at_most(1000), pytest.raises(TrainingError, match=r"cannot write .*last\.ckpt: File too large"):
        train(make(Own), blobs(), TrainOptions(1), tmp_path)
    assert not list(tmp_path.iterdir())
    train(make(Own), blobs(), TrainOptions(1), tmp_path)


def test_hyperparameters_that_could_not_be_loaded_are_found_before_training(tmp_path):
    with pytest.raises(ModelError, match=r"Own: .* hyper-parameters scheduler \(PosixPath\)"):
        train(make(Own, Path("x")), blobs(), TrainOptions(1), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Total length of")
def test_no_training_rows(tmp_path):
    data = TensorData((torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)), blobs().splits[1].tensors)
    data.train_dataloader = lambda: torch.utils.data.DataLoader(data.splits[0], 32, drop_last=True)
    with pytest.raises(TrainingError, match="no batches"):
        train(make(Own), data, TrainOptions(1), tmp_path)


def test_options_out_of_range_are_listed_together():
    with pytest.raises(TrainingError) as raised:
        TrainOptions(0, seed=-1, accelerator="quantum", devices=0, precision="3", gradient_clip=0, threads=0)
    for name in ("max_epochs", "seed", "accelerator", "devices", "precision", "gradient_clip", "threads"):
        assert f"{name} must" in str(raised.value)


def test_threads_are_set_while_it_trains(tmp_path):
    class Counts(Own):
        def training_step(self, batch, batch_idx):
            self.threads = torch.get_num_threads()
            return super().training_step(batch, batch_idx)

    model, before = make(Counts), torch.get_num_threads()
    train(model, blobs(), TrainOptions(1, threads=before + 1), tmp_path)
    assert model.threads == before + 1
    assert torch.get_num_threads() == before


def test_gradient_clip_bounds_the_step(tmp_path):
    class Plain(Own):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    def moved(clip: float | None) -> float:
        model = make(Plain)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        data = TensorData(tuple(tensor[:32] for tensor in blobs().splits[0].tensors), blobs().splits[1].tensors)
        train(model, data, TrainOptions(1, gradient_clip=clip), tmp_path / str(clip))
        return (nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()

    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(None) > 0.1
