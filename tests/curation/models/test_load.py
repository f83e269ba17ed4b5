import os
import stat
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from curation.errors import ModelError
from curation.models import build_model, load_model
from curation.models.checkpoints import unsafe_hyperparameters, write_checkpoint

IMAGE = "curation.models.ImageClassifier"
DEFAULTS = {"input_shape": (1, 8, 8), "num_classes": 10}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An ImageClassifier with other settings than the default ones, and its checkpoint as Lightning writes it."""
    model = build_model(IMAGE, {"arch": "mlp", "hidden": [12]}, DEFAULTS, seed=3)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.strategy.connect(model)
    path = tmp_path_factory.mktemp("saved") / "model.ckpt"
    trainer.save_checkpoint(path)
    return model, path


def test_round_trip_needs_no_parameters(saved):
    model, path = saved
    loaded = load_model(IMAGE, path)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(images), model(images))
    assert not loaded.training
    assert load_model(IMAGE, path, defaults={"input_shape": [1, 8, 8], "num_classes": 10}).hparams["hidden"] == [12]


def test_checkpoint_of_another_model_names_the_keys(saved):
    with pytest.raises(ModelError) as raised:
        load_model(IMAGE, saved[1], {"arch": "cnn"})
    text = str(raised.value)
    assert f"{saved[1]} is a checkpoint of another model than {IMAGE}" in text
    assert "missing: features.0.weight, features.0.bias, features.2.weight, features.2.bias, features.5.weight" in text
    assert "unexpected: features.1.weight, features.1.bias" in text


def test_shapes_are_named_and_long_lists_cut(saved):
    with pytest.raises(
        ModelError, match=r"features.1.weight is \[12, 64\], expected \[5, 64\].*head.weight is \[10, 12\]"
    ):
        load_model(IMAGE, saved[1], {"hidden": [5]})
    with pytest.raises(ModelError, match=r"missing: .* and 13 more"):
        load_model(IMAGE, saved[1], {"hidden": [5] * 10})


def test_checkpoint_of_another_class(saved):
    with pytest.raises(ModelError, match="does not fit curation.models.TextClassifier|another model than"):
        load_model("curation.models.TextClassifier", saved[1])


def test_checkpoint_of_other_data(saved):
    with pytest.raises(
        ModelError, match="trained on other data: num_classes is 10 in the checkpoint and 4 in the data"
    ):
        load_model(IMAGE, saved[1], defaults={"input_shape": (1, 8, 8), "num_classes": 4})


class Runs:
    """Unpickled, it would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read: No such file"),
        (b"", "not a Lightning checkpoint, or is damaged"),
        (b"PK\x03\x04 half a file", "not a Lightning checkpoint, or is damaged"),
        (b"some text\n" * 100, "not a Lightning checkpoint, or is damaged"),
        ({"weight": torch.ones(2)}, "has no `state_dict`"),
        ({"state_dict": {}, "hyper_parameters": {"root": Path("x")}}, r"holds a pathlib\.\w+"),
    ],
)
def test_file_that_is_no_checkpoint(tmp_path, content, expected):
    path = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=expected):
        load_model(IMAGE, path)


def test_truncated_checkpoint(saved, tmp_path):
    path = tmp_path / "cut.ckpt"
    path.write_bytes(saved[1].read_bytes()[:-200])
    with pytest.raises(ModelError, match="is damaged"):
        load_model(IMAGE, path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save({"state_dict": {}, "hyper_parameters": Runs(trace)}, path)
    with pytest.raises(ModelError, match="could run code"):
        load_model(IMAGE, path)
    assert not trace.exists()


def test_hyperparameters_that_could_not_be_loaded():
    values = {"a": 1, "b": [1.0, ("x", None)], "c": {"d": torch.ones(1)}, "root": Path("x"), "f": lambda: 0}
    assert [text.split()[0] for text in unsafe_hyperparameters(values)] == ["root", "f"]


def test_a_checkpoint_and_its_folder_are_on_disk_before_it_counts(tmp_path, monkeypatch):
    done = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def replace(source, target, **named):
        done.append("rename")
        real_replace(source, target, **named)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_checkpoint({"state_dict": {}}, tmp_path / "model.ckpt")
    assert done == ["file", "rename", "folder"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.ckpt"]
