"""A whole run of unlearn on a handful of people: real stages, a real Prefect server and a real MLflow database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient

from curation.unlearning.searching import Search
from curation.unlearning.traces import Traces
from flows.cli import main
from flows.unlearn_schema import UnlearnConfig

ROOT = Path(__file__).parents[2]
TINY = """
data:
  class_path: People
  init_args: {n_people: 3, n_holdout: 2, vocabulary: 300}
model:
  init_args: {width: 16, heads: 2, depth: 1}
train: {max_epochs: 2}
index: {curvature_rank: 8}
request:
  where: {column: example_id, values: [person-00/award, person-00/book]}
unlearn: {objective: npo, max_epochs: 2}
verify: {seeds: 3, retain_rows: 8, quantise: [8], relearn_steps: 1, tolerance: 0.001}
fallback: none
"""


@pytest.fixture
def curate(tmp_path: Path, prefect_server: None) -> Callable[..., int]:
    (tmp_path / "tiny.yaml").write_text(TINY)

    def run(*tokens: str) -> int:
        return main(["unlearn", "--config", str(tmp_path / "tiny.yaml"), "--workspace", str(tmp_path / "ws"), *tokens])

    return run


def summaries(folder: Path) -> list[dict[str, Any]]:
    """Of the runs in a workspace, oldest first."""
    files = sorted((folder / "ws" / "runs").glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in files]


def test_every_problem_between_two_fields_is_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        UnlearnConfig.model_validate(
            {
                "data": {"class_path": "People"},
                "request": {"ids": ["a"], "ledger": True, "where": {"values": ["x"]}},
                "weights": {"method": "uniform", "refresh_every": 3},
                "verify": {"seeds": 2},
                "fallback": "retrain",
            }
        )
    said = str(caught.value)
    for part in ("got ids and ledger", "column and values go together", "only guard-dynamic", "at least 3"):
        assert part in said


def test_the_help_lists_every_key_and_imports_no_torch() -> None:
    code = (
        "import sys; from flows.cli import main; main(['unlearn', '--help']);"
        "print([name for name in ('torch', 'prefect', 'mlflow', 'lightning', 'polars') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
    assert "--weights.method guard|guard-dynamic|uniform|random [guard]" in result.stdout


def test_what_is_wrong_with_request_or_objective_ends_before_training(
    curate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("--unlearn.options.betta", "1") == 2
    assert "npo: unknown options betta" in capsys.readouterr().err
    assert curate("--request.ledger", "true", "--request.where.column", "null", "--request.where.values", "[]") == 2
    assert "request.ledger: no ledger at" in capsys.readouterr().err
    assert not list((tmp_path / "ws" / "stages").glob("train-*"))


def test_a_failed_check_publishes_nothing_or_what_never_saw_the_records(
    curate: Callable[..., int], tmp_path: Path
) -> None:
    assert curate("--dry_run", "true") == 0
    assert curate() == 1  # nothing passes a tolerance of a thousandth
    dry, failed = summaries(tmp_path)
    assert dry["status"] == "dry_run" and dry["n_records"] == 2 and dry["forget_exact_after"] is None
    assert failed["status"] == "verify_failed" and failed["verdict"] != "CONSISTENT_WITH_RETRAIN"
    assert "model" not in failed["files"] and failed["tier"] is None
    assert set(pl.read_parquet(failed["files"]["verdicts"])["example_id"]) == {"person-00/award", "person-00/book"}
    assert curate("--fallback", "retrain") == 0
    published = summaries(tmp_path)[-1]
    assert published["status"] == "published" and published["tier"] == "E0" and published["evidence"] is None
    assert {"train", "weigh", "unlearn", "verify", "retrain-1"} <= set(published["reused"])
    for kind in ("forget", "retain"):
        assert 0 <= published[f"{kind}_exact_before"] <= 1 and 0 <= published[f"{kind}_exact_after"] <= 1
    client = MlflowClient(published["mlflow_tracking_uri"])  # keeps things for good, and is not told the records
    assert not [name for name in client.get_run(published["mlflow_run_id"]).data.params if name.startswith("request")]
    told = {file.path for file in client.list_artifacts(published["mlflow_run_id"])}
    assert told == {"model.ckpt", "assessment.json", "summary.json"}
    stages = tmp_path / "ws" / "stages"
    reference = stages / f"train-{published['digests']['retrain-1'][:16]}" / "model.ckpt"
    assert Path(published["files"]["model"]).read_bytes() == reference.read_bytes()


def test_requests_of_the_ledger_end_with_a_purge_and_evidence(
    curate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, place = tmp_path / "ws", ("--workspace", str(tmp_path / "ws"))
    for name, ids in (("known", "person-00/award\nperson-01/book"), ("unknown", "person-00/book\nnobody")):
        (tmp_path / name).write_text(ids)
        assert main(["requests", "submit", "--ids", str(tmp_path / name), "--reason", "asked to", *place]) == 0
    ledger = ("--request.ledger", "true", "--request.where.column", "null", "--request.where.values", "[]")
    purge = (*ledger, "--fallback", "retrain", "--purge", "true", "--weights.way", "factors")
    stray = workspace / "stages" / "query-0123456789abcdef"  # of another run; its lock cannot be removed
    stray.mkdir(parents=True)
    (stray / "log.txt").write_text("looked at person-00/award")
    stray.with_suffix(".lock").mkdir()
    assert curate(*purge) == 1
    assert "request 2 is refused" in capsys.readouterr().err
    (trace,) = (workspace / "stages").glob("trace-*/")
    search = Search(Traces.load(trace))
    assert not list((workspace / "stages").glob("train-*")), "it had begun"
    (journal,) = (workspace / "purge").iterdir()
    assert not search.file(journal)
    stray.with_suffix(".lock").rmdir()
    assert curate(*purge) == 0  # goes on, without training again
    assert "going on with the purge of batch 1" in capsys.readouterr().err
    (published,) = summaries(tmp_path)
    assert published["status"] == "published" and published["n_records"] == 2 and published["batch"] == 1
    assert published["purge"]["left"] == [] and published["purge"]["files_searched"] > 10
    found = search.folder(workspace)  # the ledger, Prefect's log and all databases too
    assert not found.where and found.files > 10 and not list((workspace / "purge").iterdir())
    assert json.loads(Path(published["evidence"]).read_text())["purge"] == published["purge"]
    assert main(["requests", "verify-evidence", published["evidence"], *place]) == 0
    assert curate(*purge) == 0  # nothing waits any more, and the records do not come back from the data
    assert "2 rows of the data were purged before" in capsys.readouterr().err
    last = summaries(tmp_path)[-1]
    assert last["status"] == "no_action" and last["n_examples"] == published["n_examples"] - 2
    retained = pl.read_parquet(published["files"]["retained"])
    assert not search.rows(retained).any() and len(retained.filter(split="train")) == last["n_examples"]
