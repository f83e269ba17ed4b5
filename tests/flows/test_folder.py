from __future__ import annotations

from pathlib import Path

import pytest

from flows.files import read_json
from flows.folder import Damaged, read_manifest, write_manifest


def flip(path: Path, at: int | None = None) -> None:
    """Flip one bit in the middle of a file; its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index" / "shards").mkdir(parents=True)
    for name in ("model.ckpt", "last.ckpt", "log.txt", "job.json", ".lock", "index/curvature.safetensors"):
        (tmp_path / name).write_text(f"content of {name}")
    (tmp_path / "index" / "shards" / "00000.safetensors").write_bytes(bytes(1000))
    result = {"stage": "index", "digest": "d", "values": {"rows": 3}, "files": {"checkpoint": "model.ckpt"}}
    write_manifest(tmp_path, result, spent=("last.ckpt",))
    (tmp_path / "last.ckpt").unlink()
    return tmp_path


def test_a_manifest_lists_every_file_of_the_stage_wherever_it_lies(folder: Path) -> None:
    manifest = read_manifest(folder, "d")
    assert manifest is not None and manifest["values"] == {"rows": 3}
    assert set(manifest["sha256"]) == {"model.ckpt", "index/curvature.safetensors", "index/shards/00000.safetensors"}


def test_another_digest_or_no_manifest_is_an_unfinished_stage(folder: Path, tmp_path: Path) -> None:
    assert read_manifest(folder, "e") is None
    (folder / "manifest.json").unlink()
    assert read_manifest(folder, "d") is None


@pytest.mark.parametrize("name", ["model.ckpt", "index/curvature.safetensors", "index/shards/00000.safetensors"])
def test_a_flipped_bit_or_a_missing_file_is_named(folder: Path, name: str) -> None:
    flip(folder / name)
    with pytest.raises(Damaged, match=f"{name} is damaged"):
        read_manifest(folder, "d")
    (folder / name).unlink()
    with pytest.raises(Damaged, match=f"{name} is missing"):
        read_manifest(folder, "d")


def test_a_manifest_that_says_something_else_than_was_written_is_damaged(folder: Path) -> None:
    path = folder / "manifest.json"
    at = path.read_text().index('"rows": 3') + len('"rows": ')
    flip(path, at)
    assert (read_json(path) or {})["values"] == {"rows": 2}
    with pytest.raises(Damaged, match="manifest.json is damaged"):
        read_manifest(folder, "d")
    path.write_text("{")
    with pytest.raises(Damaged, match="manifest.json is damaged"):
        read_manifest(folder, "d")
