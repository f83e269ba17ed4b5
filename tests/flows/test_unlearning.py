"""A whole run of unlearn on a handful of people: real stages, a real Prefect server and a real MLflow database."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient
from rich.console import Console

from curation.data.text_tokens import TOKENIZER
from curation.unlearning.ledger import Ledger
from curation.unlearning.searching import Search
from curation.unlearning.traces import Traces
from flows.cli import main
from flows.errors import ConfigError
from flows.files import digest_file
from flows.outputs import RunFolder
from flows.publishing import Place
from flows.purging import OTHERS, VOCABULARY
from flows.unlearn_evidence import FAILED, FILES, NOT_COMPARED, SALT, TOKEN_IDS, UNLIKE, check_secrets
from flows.unlearn_schema import UnlearnConfig
from flows.unlearn_summary import closing_table

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
                "approval": {"expires_after": 3},
                "publish": {"alias": "v1"},
            }
        )
    said = str(caught.value)
    parts = ("got ids and ledger", "column and values go together", "only guard-dynamic", "at least 3")
    for part in (*parts, "no approval is asked for", "MLflow keeps latest, v1"):
        assert part in said


def test_models_to_compare_with_are_two_at_least_or_none_at_all() -> None:
    asked = {"data": {"class_path": "People"}, "request": {"ids": ["a"]}}
    assert UnlearnConfig.model_validate(asked | {"verify": {"seeds": 0}}).verify.seeds == 0
    for seeds, said in ((1, "expected at least 2, or 0 for none, got 1"), (0, "of 0 models one would be published")):
        wrong = {"verify": {"seeds": seeds}, "fallback": "retrain", "publish": {"alias": "v1"}}
        with pytest.raises(ValueError, match="expected seeds of at least 3") as caught:
            UnlearnConfig.model_validate(asked | wrong)
        assert said in str(caught.value) and "MLflow keeps latest, v1" in str(caught.value)


def test_a_key_or_salt_that_cannot_be_read_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    asked = {"data": {"class_path": "People"}, "request": {"ids": ["a"]}, "evidence": {"key": tmp_path / "none.pem"}}
    config = UnlearnConfig.model_validate(asked | {"workspace": tmp_path})
    (tmp_path / SALT).write_bytes(b"short")
    with pytest.raises(ConfigError) as caught:
        check_secrets(config)
    first, second = caught.value.problems
    assert first.startswith("evidence.key: ") and "No such file" in first and "expected 32 bytes, got 5" in second


def test_what_a_newton_step_has_no_use_for_is_told() -> None:
    with pytest.raises(ValueError) as caught:
        UnlearnConfig.model_validate(
            {
                "data": {"class_path": "Digits"},
                "request": {"ids": [1]},
                "unlearn": {"objective": "newton", "lr": 0.1, "retain_rows": 5},
            }
        )
    assert "unlearn.lr, unlearn.retain_rows: newton is one step" in str(caught.value)
    assert "set it to uniform, got guard-dynamic" in str(caught.value)
    tree = {"data": {"class_path": "Digits"}, "request": {"ids": [1]}, "weights": {"method": "uniform"}}
    config = UnlearnConfig.model_validate(tree | {"unlearn": {"objective": "newton"}})
    assert UnlearnConfig.model_validate(config.model_dump(mode="json")) == config  # the file a run writes repeats it


@pytest.mark.parametrize("place", ["eve:secret@db/requests", "db/requests?user=eve&password=secret"])
def test_a_password_that_would_be_kept_is_refused(place: str) -> None:
    request = {"ledger": True, "ledger_url": f"postgresql+psycopg://{place}"}
    with pytest.raises(ValueError, match="request.ledger_url: it holds a password"):
        UnlearnConfig.model_validate({"data": {"class_path": "People"}, "request": request})
    request["ledger_url"] = "postgresql+psycopg://eve@db/requests"
    assert UnlearnConfig.model_validate({"data": {"class_path": "People"}, "request": request})


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"score": "cosine", "way": "two_forwards"}, "weights.score, weights.way: cosine needs each record's own"),
        ({"method": "guard-dynamic", "way": "factors"}, "weights.way: an index is of the model as it was"),
        ({"method": "guard-dynamic", "score": "cosine", "refresh_every": 5}, None),
        ({"way": "factors"}, "or weights.method to guard"),
        ({"way": "two_forwards"}, None),
        ({"score": "cosine"}, None),
    ],
)
def test_weights_need_a_way_that_gives_their_score(weights: dict[str, Any], said: str | None) -> None:
    config = {"data": {"class_path": "People"}, "request": {"ids": ["a"]}, "weights": weights}
    if said is None:
        assert UnlearnConfig.model_validate(config).weights.method
    else:
        with pytest.raises(ValueError, match=said):
            UnlearnConfig.model_validate(config)


def test_the_help_lists_every_key_and_imports_no_torch() -> None:
    code = (
        "import sys; from flows.cli import main; main(['unlearn', '--help']);"
        "print([name for name in ('torch', 'prefect', 'mlflow', 'lightning', 'polars') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
    assert "--weights.method guard|guard-dynamic|uniform|random [guard-dynamic]" in result.stdout


def test_what_is_wrong_with_request_or_objective_ends_before_training(
    curate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("--unlearn.options.betta", "1") == 2
    assert "npo: unknown options betta" in capsys.readouterr().err
    assert curate("--request.ledger", "true", "--request.where.column", "null", "--request.where.values", "[]") == 2
    assert "request.ledger: no ledger at" in capsys.readouterr().err
    assert curate("--request.where.values", "[nobody/x]") == 2
    assert "no training row has 'nobody/x'" in capsys.readouterr().err
    assert not list((tmp_path / "ws" / "stages").glob("train-*"))


def test_a_failed_check_publishes_nothing_or_what_never_saw_the_records(
    curate: Callable[..., int], tmp_path: Path
) -> None:
    assert curate("--dry_run", "true") == 0
    assert curate() == 1  # nothing passes a tolerance of a thousandth
    dry, failed = summaries(tmp_path)
    assert dry["status"] == "dry_run" and dry["n_records"] == 2 and dry["forget_exact_after"] is None
    assert failed["status"] == "verify_failed" and failed["verdict"] != "CONSISTENT_WITH_RETRAIN"
    assert "model" not in failed["files"] and failed["tier"] == "E2"
    assert main(["requests", "verify-evidence", failed["evidence"], "--workspace", str(tmp_path / "ws")]) == 0
    said = json.loads(Path(failed["evidence"]).read_text())
    assert said["publication"] is None and said["ledger"] is None and said["tier"] == "E2" and said["rejected"] is None
    assert set(pl.read_parquet(failed["files"]["verdicts"])["example_id"]) == {"person-00/award", "person-00/book"}
    assert curate("--verify.seeds", "0", "--tracking.register_as", "people") == 1
    alone, screen = summaries(tmp_path)[-1], StringIO()
    closing_table(alone, Console(file=screen))
    assert "set verify.seeds to at least 2 and run again" in screen.getvalue()
    assert alone["status"] == "verify_failed" and alone["verdict"] == "UNTESTABLE" and alone["n_references"] == 0
    assert "model" not in alone["files"] and alone["registered"] is None and "unlearn" in alone["reused"]
    assert main(["requests", "verify-evidence", alone["evidence"], "--workspace", str(tmp_path / "ws")]) == 0
    said = json.loads(Path(alone["evidence"]).read_text())
    assert said["tier"] == "E3" and said["references"] == [] and said["publication"] is None
    assert NOT_COMPARED in said["caveats"] and {one["z"] for one in said["records"]} == {None}
    assert curate("--fallback", "retrain", "--tracking.register_as", "people") == 0
    published = summaries(tmp_path)[-1]
    assert published["status"] == "published" and published["tier"] == "E0"
    assert {"train", "weigh", "unlearn", "verify", "retrain-1"} <= set(published["reused"])
    for kind in ("forget", "retain"):
        assert 0 <= published[f"{kind}_exact_before"] <= 1 and 0 <= published[f"{kind}_exact_after"] <= 1
    client = MlflowClient(published["mlflow_tracking_uri"])  # keeps things for good, and is not told the records
    assert not [name for name in client.get_run(published["mlflow_run_id"]).data.params if name.startswith("request")]
    told = {file.path for file in client.list_artifacts(published["mlflow_run_id"])}
    assert told == {"model.ckpt", "assessment.json", "summary.json", *FILES}
    stages = tmp_path / "ws" / "stages"
    reference = stages / f"train-{published['digests']['retrain-1'][:16]}" / "model.ckpt"
    assert Path(published["files"]["model"]).read_bytes() == reference.read_bytes()
    said, page = (Path(published["files"][name]).read_text() for name in ("evidence", "evidence_page"))
    assert UNLIKE in said  # its comparison does not pass such a tolerance either
    told = json.loads(said)
    assert told["publication"] == {"name": "people", "version": "1", "alias": "champion"}
    assert told["rejected"]["name"] == "npo, guard-dynamic" and told["rejected"]["verdict"] == failed["verdict"]
    assert told["rejected"]["failures"] == failed["failures"] == published["failures"] != []
    assert sum(line.startswith(FAILED) for line in told["caveats"]) == 1, "why its own comparison does not pass"
    assert (
        "TinyGPT trained anew, as the configuration begins, on the data after: width 16, heads 2"
        in told["references"][0]["trained"]
    )
    assert [point["step"] for point in told["history"]] == [0, 1, 2], "of what was rejected, from the model as it was"
    assert "Loss during the unlearning that was rejected" in page and page.count("<polyline") == 6
    assert "person-00/award" not in said + page and "person-00/book" not in said + page
    assert (published["alias_before"], published["alias_after"]) == (None, "1")
    version = client.get_model_version_by_alias("people", "champion")
    assert str(version.version) == "1" and version.tags["curate.evidence"] == digest_file(Path(published["evidence"]))


def test_requests_of_the_ledger_end_with_purge_and_evidence_once_approved_whatever_comes_between(
    curate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, place = tmp_path / "ws", ("--workspace", str(tmp_path / "ws"))
    for name, ids in (("known", "person-00/award\nperson-01/book"), ("unknown", "person-00/book\nnobody")):
        (tmp_path / name).write_text(ids)
        assert main(["requests", "submit", "--ids", str(tmp_path / name), "--reason", "asked to", *place]) == 0
    ledger = ("--request.ledger", "true", "--request.where.column", "null", "--request.where.values", "[]")
    asked = (*ledger, "--fallback", "retrain", "--approval.required", "true", "--tracking.register_as", "people")
    asked += ("--purge", "true", "--weights.method", "guard", "--weights.way", "factors")
    assert curate(*asked) == 0
    (waiting,) = summaries(tmp_path)
    assert waiting["status"] == "awaiting_approval"
    assert not list((workspace / "stages").glob("unlearn-*"))
    assert main([*shlex.split(waiting["approval"]["command"])[1:], "--by", "eve"]) == 0

    stray = workspace / "stages" / "query-0123456789abcdef"  # of another run; its lock cannot be removed
    stray.mkdir()
    left = workspace / "runs" / "people-earlier" / TOKENIZER  # of an earlier purge
    left.parent.mkdir(parents=True)
    left.write_text('{"stands_for": "a"}')
    (left.parent / "model.ckpt").write_bytes(b"of another run")
    (stray / "log.txt").write_text("looked at person-00/award")
    stray.with_suffix(".lock").mkdir()
    assert curate(*asked) == 1  # in the middle of the purge
    (trace,) = (workspace / "stages").glob("trace-*/")
    search = Search(Traces.load(trace))
    (journal,) = (workspace / "purge").iterdir()
    assert not search.file(journal) and not list((workspace / "stages").glob("train-*/"))
    stray.with_suffix(".lock").rmdir()
    assert "request 2 is refused" in capsys.readouterr().err

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # after the alias has moved
        patch.setattr(RunFolder, "end", full)
        assert curate(*asked) == 1
    champion = Place(waiting["mlflow_tracking_uri"], "people", "champion")
    assert champion.version() is None, "a run that failed leaves the alias where it was"
    (undone,) = summaries(tmp_path)
    assert (undone["status"], undone["alias_after"]) == ("publishing", None), "and no document says otherwise"
    assert curate(*asked) == 0
    assert "going on with the purge of batch 1" in capsys.readouterr().err
    (published,) = summaries(tmp_path)
    assert champion.version() == published["alias_after"] == "1"
    said = json.loads(Path(published["evidence"]).read_text())
    assert said["approval"]["by"] == "eve" and said["purge"] == published["purge"]
    assert said["purge"]["left"] == [] and said["purge"]["files_searched"] > 10
    kinds = [event.kind for event in Ledger(workspace / "ledger.db").events() if event.batch == 1]
    assert kinds == [
        "claimed", "refused", "weighed", "approval", "approved", "unlearned", "retrained", "verified", "evidence", "published",
    ]  # fmt: skip
    assert published["status"] == "published" and published["n_records"] == 2 and published["batch"] == 1
    found = search.folder(workspace)  # the ledger, Prefect's log and MLflow's database too
    assert not found.where and not list((workspace / "purge").iterdir())
    assert main(["requests", "verify-evidence", published["evidence"], *place]) == 0
    assert curate(*asked) == 0  # nothing waits any more, and the records do not come back from the data
    assert "2 rows of the data were purged before" in capsys.readouterr().err
    last = summaries(tmp_path)[-1]
    assert last["status"] == "no_action" and last["n_examples"] == published["n_examples"] - 2
    tokens = json.loads(Path(published["files"]["tokenizer"]).read_text())
    assert tokens["model"]["type"] == "BPE" and VOCABULARY in said["caveats"]
    assert [one["name"] for one in said["hashes"]] == ["model", TOKEN_IDS, TOKENIZER]
    assert said["hashes"][2]["after"] == digest_file(Path(published["files"]["tokenizer"]))
    assert said["hashes"][2]["before"] is None, "there was no file of it"
    assert not left.exists() and not list((workspace / "mlflow-artifacts").rglob(TOKENIZER))
    assert OTHERS.format(1) in said["caveats"], "the stray one"
    assert tokens["stands_for"] == said["hashes"][1]["after"], "to the model it is the same"
    retained = pl.read_parquet(published["files"]["retained"])
    suffered = pl.read_parquet(published["files"]["collateral"])["example_id"].to_list()
    assert suffered and set(suffered) <= set(retained["example_id"]), "who stays is named in tables only"
    for name in ("evidence", "assessment"):  # else a later purge would have to remove them
        assert "person-" not in Path(published["files"][name]).read_text()
    assert not search.rows(retained).any() and len(retained.filter(split="train")) == last["n_examples"]
