from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from flows.files import copy_atomic, digest_of, read_json, write_json
from lorif_core.atomic import replacing


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(OSError, match="No space left"), replacing(target) as file:
        file.write(b"{")
        raise OSError(errno.ENOSPC, "No space left on device", file.name)
    assert read_json(target) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        target = write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_json_refuses_what_other_readers_could_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_half_a_file_is_no_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of(json.loads('{"b": [1, 2], "a": 1}'))
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_copy_is_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(10_000))
    assert copy_atomic(source, tmp_path / "deep" / "target").read_bytes() == source.read_bytes()
