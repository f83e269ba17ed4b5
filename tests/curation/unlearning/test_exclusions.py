from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import DataError, LedgerError
from curation.unlearning.exclusions import exclude, excluded


def test_rows_stay_out_as_often_as_they_were_removed(tmp_path: Path) -> None:
    path = tmp_path / "purged.json"
    for _ in range(2):  # as after a crash
        exclude(path, "batch 1", ["a", "b"])
    assert excluded(path, ["x", "b", "a", "a", "b"]) == [1, 2]
    exclude(path, "batch 2", ["a"])
    assert excluded(path, ["x", "b", "a", "a", "b", "a"]) == [1, 2, 3]
    assert excluded(path, []) == []


def test_the_list_holds_nothing_that_can_be_guessed(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path in (first, second):
        exclude(path, "batch 1", ["content"])
        assert (tmp_path / f"{path.name}.salt").stat().st_mode & 0o777 == 0o600
    assert first.read_bytes() != second.read_bytes() and b"content" not in first.read_bytes()


def test_a_list_that_is_damaged_or_without_its_salt_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "purged.json"
    exclude(path, "batch 1", ["a"])
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match="expected a list of purged rows"):
        excluded(path, ["a"])
    (tmp_path / "purged.json.salt").unlink()
    with pytest.raises(LedgerError, match="is missing"):
        excluded(path, ["a"])
