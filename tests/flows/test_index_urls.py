"""`curate index ...` on an index in object storage, as on a folder."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import fsspec
import polars as pl
import pytest

from flows.cli import main
from lorif_core import FactorStore, verify
from tests.flows.test_index_changes import made, table  # noqa: F401  a fixture


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIF_CACHE", str(tmp_path / "cache"))


def put(made: Path, url: str) -> None:  # noqa: F811
    """Upload the index of 60 rows."""
    files, root = fsspec.core.url_to_fs(url)
    for path in (made / "index").rglob("*"):
        if path.is_file() and path.name != ".lock":
            files.pipe_file(f"{root}/{path.relative_to(made / 'index').as_posix()}", path.read_bytes())


def check_commands(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All that take the index on the command line; 58 rows are left of it."""

    def said(command: str, *more: str) -> dict:
        assert main(["index", command, url, *more, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["path"] == url
        return found

    assert said("info")["rows"] == 60
    assert said("purge", "--ids", "customer-30", "customer-31", "nobody")["not_found"] == ["nobody"]
    assert said("compact")["merged"] == 0
    assert said("refit")["drift"] == 0
    assert said("verify")["problems"] == []
    assert len(FactorStore.open(url)) == 58 and verify(url) == []
    assert main(["index", "purge", url, "--ids", "nobody"]) == 0
    assert f"0 rows removed, 0 shards written anew or removed: {url}" in capsys.readouterr().out


def test_commands_take_a_url(made: Path, cache: None, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    url = f"memory://{uuid.uuid4()}/index"
    put(made, url)
    check_commands(url, capsys)


@pytest.mark.parametrize("command", ["purge", "compact", "refit", "verify", "info"])
def test_a_url_without_an_index_is_refused(command: str, cache: None, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--ids", "a"] if command == "purge" else []
    assert main(["index", command, f"memory://{uuid.uuid4()}", *more]) == 2
    assert "no index" in capsys.readouterr().err
    assert main(["index", command, "nonsense://x", *more]) == 2
    assert "nonsense://x: " in capsys.readouterr().err


@pytest.mark.slow
def test_commands_against_an_s3_server(
    made: Path,  # noqa: F811
    cache: None,
    s3_server: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket = f"b-{uuid.uuid4()}"
    fsspec.filesystem("s3").mkdir(bucket)
    url = f"s3://{bucket}/some/index"
    put(made, url)
    check_commands(url, capsys)
    config = tmp_path / "index.yaml"
    config.write_text((made / "index.yaml").read_text() + f"index: {{path: {url}}}\n")
    table(100).filter(~pl.col("row").is_in(["customer-30", "customer-31"])).write_csv(tmp_path / "t.csv")
    shutil.copy(made / "m.ckpt", tmp_path)
    options = ["--config", str(config), "--workspace", str(tmp_path / "workspace"), "--model.checkpoint"]
    assert main(["index", "append", *options, str(tmp_path / "m.ckpt")]) == 0
    assert f"20 rows added to the index of now 78: {url}" in capsys.readouterr().out
    assert main(["index", "query", *options, str(tmp_path / "m.ckpt"), "--rows", "3", "--top", "2", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert len(found["neighbours"]) == 2
    assert len(FactorStore.open(url)) == 78 and verify(url) == []
