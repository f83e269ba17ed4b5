from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.schema import CleanConfig
from flows.stages import indexing
from flows.stages.common import new_model, open_data
from flows.stages.indexed import indexed
from lorif_core import verify
from lorif_core.parallel import build_part, make_head


def quiet(text: str, done: int, total: int | None) -> None:
    pass


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    tree = {
        "data": {"class_path": "Digits"},
        "model": {"class_path": "ImageClassifier", "init_args": {"arch": "mlp", "hidden": [8]}},
        "root": str(folder),
    }
    arguments = CleanConfig.model_validate(tree).model_dump(mode="json") | {"data_digest": None}
    model = new_model(arguments, open_data(arguments), seed=0)
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, folder / "m.ckpt")
    return arguments | {"checkpoint": str(folder / "m.ckpt")}


@pytest.mark.parametrize("name", ["shards/00000.safetensors", "projection.safetensors", "manifest.json"])
def test_what_an_interrupted_run_left_damaged_is_not_built_upon(
    arguments: dict[str, Any], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    indexing.run(arguments, tmp_path, quiet)
    file = tmp_path / "index" / name
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with caplog.at_level(logging.WARNING):
        indexing.run(arguments, tmp_path, quiet)
    assert name in caplog.text and "indexing from the start" in caplog.text
    assert verify(tmp_path / "index") == []


def test_a_damaged_part_that_interrupted_workers_left_is_not_built_upon(
    arguments: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attributor, rows = indexed(arguments, quiet)
    build = attributor.build(rows.loader, tmp_path / "index", rows.ids)
    make_head(build, 2)
    build_part(build, 1, 2)
    assert indexing._damage(tmp_path / "index") is None
    file = tmp_path / "index" / "parts" / "1-of-2" / "shards" / "00001.safetensors"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    with caplog.at_level(logging.WARNING):
        indexing.run(arguments, tmp_path, quiet)
    assert "1-of-2/shards/00001.safetensors" in caplog.text and "indexing from the start" in caplog.text
    assert verify(tmp_path / "index") == []
