"""What the evidence of a run says of requests whose records an earlier run had removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.unlearning import evidence
from curation.unlearning.ledger import Ledger
from flows.earlier import check_earlier
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
    tags = {"curate.run": "r", "curate.evidence": digest_file(path)}
    check_earlier("models:/people@champion", {"curate.run": "r"}, None, "default")
    with pytest.raises(ConfigError, match="has not published it"):
        check_earlier("models:/people@champion", tags, ledger, "default")
    requests.close(published(tmp_path) | {"evidence": str(path)})
    check_earlier("models:/people@champion", tags, ledger, "default")
    with pytest.raises(ConfigError, match=r"has not published it for request\.dataset people"):
        check_earlier("models:/people@champion", tags, ledger, "people")
    for other, said in (
        (None, "takes no requests"),
        (Ledger(tmp_path / "other.db"), "the ledger of this run has not published it"),
    ):
        with pytest.raises(
            ConfigError, match=f"models:/people@champion was unlearned of other records before .* {said}"
        ):
            check_earlier("models:/people@champion", tags, other, "default")


def test_a_batch_left_by_a_crash_tells_of_the_run_that_went_on_with_it(tmp_path: Path) -> None:
    requests, ledger = answered(tmp_path, ["ann"], {"ann", "bob"})
    requests.advance("weighed", {})
    assert requests.batch is not None and requests.batch.status == "verified", "the same run goes on from there"
    for status in ("weighed", "unlearned", "retrained", "verified"):  # of another configuration
        requests.advance(status, {"run": "second"})
    assert ledger.events("unlearned")[-1].details == {"run": "second"} and len(ledger.events("retrained")) == 1
    requests.close(published(tmp_path))
    assert ledger.get(1).status == "published" and ledger.check() == []
