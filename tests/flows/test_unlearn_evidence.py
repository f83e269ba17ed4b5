"""What the evidence of a run says of requests whose records an earlier run had removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.unlearning import evidence
from curation.unlearning.evidence_model import Hashes
from curation.unlearning.ledger import Ledger
from flows.earlier import check_earlier, evidence_beside
from flows.errors import ConfigError
from flows.files import digest_file
from flows.unlearn_evidence import _removed_earlier
from flows.unlearn_requests import Requests
from flows.unlearn_schema import RequestSection
from tests.curation.unlearning.evidence_example import example

STEPS = ("weighed", "unlearned", "verified")


def answered(folder: Path, ids: list[str], data: set[str]) -> tuple[Requests, Ledger]:
    """A batch of one request that has come to its evidence, the data having some of its records."""
    ledger = Ledger(folder / "ledger.db")
    ledger.submit(ids, "asked to")
    requests = Requests.claim(RequestSection(ledger=True), folder)
    requests.refuse([one for one in ids if one not in data], print)
    for status in STEPS:
        requests.advance(status, {})
    return requests, ledger


def published(folder: Path) -> dict[str, str | None]:
    """What the summary of a run says that has published a model with some evidence."""
    (folder / "published.json").write_text("evidence")
    return {"status": "published", "verdict": None, "approval": None, "evidence": str(folder / "published.json")}


def test_a_request_that_names_a_record_removed_before_has_evidence_without_a_problem(tmp_path: Path) -> None:
    first, ledger = answered(tmp_path, ["ann"], {"ann", "bob"})
    first.close(published(tmp_path))
    requests, ledger = answered(tmp_path, ["ann", "bob"], {"bob"})
    assert requests.ids == ["ann", "bob"] and not requests.refused
    said = example(ledger, ["bob"])
    earlier = _removed_earlier(requests, list(said.records))
    assert earlier == [ledger.record_hash("ann")]
    path = evidence.write(tmp_path, example(ledger, ["bob"], removed_earlier=earlier), ledger, requests.batch)
    assert evidence.verify(path, ledger) == []
    assert _removed_earlier(None, list(said.records)) == []


def test_a_model_unlearned_before_is_unlearned_again_with_its_own_ledger_only(tmp_path: Path) -> None:
    requests, ledger = answered(tmp_path, ["ann"], {"ann", "bob"})
    path = evidence.write(tmp_path, example(ledger, ["ann"]), ledger, requests.batch)
    digest = digest_file(path)
    check_earlier("model.registered: models:/people@champion", None, None, "default")
    with pytest.raises(ConfigError, match="has not published it"):
        check_earlier("model.registered: models:/people@champion", digest, ledger, "default")
    requests.close(published(tmp_path) | {"evidence": str(path)})
    check_earlier("model.registered: models:/people@champion", digest, ledger, "default")
    with pytest.raises(ConfigError, match=r"has not published it for request\.dataset people"):
        check_earlier("model.registered: models:/people@champion", digest, ledger, "people")
    for other, said in (
        (None, "takes no requests"),
        (Ledger(tmp_path / "other.db"), "the ledger of this run has not published it"),
    ):
        with pytest.raises(
            ConfigError, match=f"models:/people@champion was unlearned of other records before .* {said}"
        ):
            check_earlier("model.registered: models:/people@champion", digest, other, "default")


def test_a_batch_left_by_a_crash_tells_of_the_run_that_went_on_with_it(tmp_path: Path) -> None:
    requests, ledger = answered(tmp_path, ["ann"], {"ann", "bob"})
    requests.advance("weighed", {})
    assert requests.batch is not None and requests.batch.status == "verified", "the same run goes on from there"
    for status in ("weighed", "unlearned", "retrained", "verified"):  # of another configuration
        requests.advance(status, {"run": "second"})
    assert ledger.events("unlearned")[-1].details == {"run": "second"} and len(ledger.events("retrained")) == 1
    requests.close(published(tmp_path))
    assert ledger.get(1).status == "published" and ledger.check() == []


def test_a_checkpoint_is_known_by_the_evidence_of_its_run_beside_it(tmp_path: Path) -> None:
    model = tmp_path / "model.ckpt"
    model.write_bytes(b"weights")
    assert evidence_beside(model) is None and evidence_beside(tmp_path / "none.ckpt") is None
    requests, ledger = answered(tmp_path, ["ann"], {"ann", "bob"})
    hashes = [Hashes("model", "a" * 64, digest_file(model))]
    path = evidence.write(tmp_path, example(ledger, ["ann"], hashes=hashes), ledger, requests.batch)
    assert evidence_beside(model) == digest_file(path)
    model.write_bytes(b"trained anew")
    assert evidence_beside(model) is None, "the evidence is of another model"
    path.write_text("{}")
    assert evidence_beside(model) is None


def test_a_dry_run_refuses_no_request_for_good(tmp_path: Path) -> None:
    ledger, told = Ledger(tmp_path / "ledger.db"), []
    for ids in (["ann"], ["ann", "bob", "nobody"]):
        ledger.submit(ids, "asked to")
    requests = Requests.claim(RequestSection(ledger=True), tmp_path)
    assert requests.refuse(["nobody"], told.append, for_good=False) == ["ann"]
    assert "request 2 would be refused: " in told[0] and "nobody" in told[0] and requests.refused == [2]
    assert [one.status for one in ledger.list()] == ["claimed", "claimed"]
    requests.close({"status": "dry_run", "verdict": None, "approval": None})
    assert [one.status for one in ledger.list()] == ["submitted", "submitted"]
