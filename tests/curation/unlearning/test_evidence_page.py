"""The page shows what the file says, escaped, and nothing but hashes of what was removed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from curation.unlearning import evidence, evidence_model, evidence_page
from curation.unlearning.evidence_words import meaning
from lorif_core.atomic import file_digest
from tests.curation.unlearning.evidence_example import example, uncompared, verified

IDS = [f"person-{number}" for number in range(5)]


def page_of(folder: Path, **changes: object) -> str:
    ledger, batch = verified(folder, IDS)
    path = evidence.write(folder, example(ledger, IDS, **changes), ledger, batch)
    page = evidence_page.write(path).read_text()
    assert file_digest(path) in page
    return page


def test_the_page_shows_everything_there_is(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "<strong>Over unlearned</strong>" in page and "<strong>Tier E2</strong>" in page
    assert all(sentence in page for sentence in evidence_model.LIMITS)
    assert page.count("<polyline") == 5  # two losses, three distributions
    assert "r / (1 + r)" in page and "nats a token" in page
    assert f"<small>{meaning('forget_quality')}</small>" in page and "less than by models that never saw" in page
    assert "mia_min_k_plus_plus" in page and page.count('title="') == 10, "records that went and that stay"
    assert not re.search(r"person-\d", page), "none is named"
    verdicts = re.findall(r"<td>(Over unlearned|Consistent with retrain)</td>", page)
    assert verdicts == ["Over unlearned"] + 4 * ["Consistent with retrain"]


def test_the_page_goes_without_what_was_not_measured(tmp_path: Path) -> None:
    bare = evidence_model.Record("a" * 64, "b" * 64, "requested", "UNTESTABLE")
    page = page_of(
        tmp_path,
        history=[],
        truth_ratios=evidence_model.TruthRatios(),
        collateral=[],
        tests=[],
        references=[],
        records=[bare] * 300,
        verdict="UNTESTABLE",
        tier="E4",
    )
    assert "<polyline" not in page and "No test was made." in page and "None" not in page.replace("None.", "")
    assert page.count("<td>Untestable</td>") == evidence_page.RECORDS and "100 more are in the file" in page


def test_a_purge_is_told_in_words(tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    page = page_of(tmp_path, purge={"files": 1234, "index_rows": 0, "left": [], "bytes_searched": 7})
    assert "<dt>other files removed</dt><dd><bdi>1,234</bdi>" in page and "files_searched" not in page
    assert "<dt>files in which something of the records was found</dt><dd><bdi>none</bdi>" in page
    assert 'id="purge"' not in page_of(other) and '<a href="#purge">' in page


@pytest.mark.parametrize("field", ["title", "duplicates_rule", "data_before"])
def test_markup_is_shown_not_run(tmp_path: Path, field: str) -> None:
    page = page_of(tmp_path, **{field: "<script>alert(1)</script>\u202e"})
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page


def test_a_rejected_unlearning_is_shown_as_such_and_what_is_not_published_said(tmp_path: Path) -> None:
    ledger, _ = verified(tmp_path, IDS)
    ratios = evidence_model.TruthRatios([0.1, 0.2], [0.5], [0.4], [0.9])
    rejected = evidence_model.Rejected("npo, guard", "RESIDUAL", ["records: 1 RESIDUAL of 5"])
    again = evidence_page.write(evidence.write(tmp_path, example(ledger, IDS, rejected=rejected, truth_ratios=ratios)))
    page = again.read_text()
    assert "Loss during the unlearning that was rejected" in page and page.count("<polyline") == 6
    assert (
        "model (npo, guard) failed the checks first (residual; records: 1 RESIDUAL of 5)" in page
        and "in no chain" in page
    )
    failed = evidence_page.write(evidence.write(tmp_path, example(ledger, IDS, publication=None))).read_text()
    assert "<strong>Not published</strong>" in failed and "Trained again" not in failed


@pytest.mark.parametrize("tier", evidence_model.UNCOMPARED)
def test_the_page_says_that_nothing_was_compared_and_has_no_column_for_it(tmp_path: Path, tier: str) -> None:
    ledger, batch = verified(tmp_path, IDS)
    page = evidence_page.write(evidence.write(tmp_path, uncompared(ledger, IDS, tier), ledger, batch)).read_text()
    assert f"<strong>Tier {tier}</strong>" in page and "<strong>Not published</strong>" in page
    assert "<strong>No model to compare with</strong>: none was trained without the records" in page
    assert "less than by the model before" in page and "between seeds" not in page
    assert page.count("<polyline") == 4 and "never saw them" not in page.partition("Course</h2>")[2].partition("<h2")[0]
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page)
    nulls = ["Null", "p<small>corrected</small>"]  # of attacks with held-out rows
    assert [one for one in heads if one in nulls] == (nulls if tier == "E3" else [])
    assert "Gap" not in heads and "reference" not in heads and page.count("<td>Untestable</td>") == len(IDS)
    for head, body in re.findall(r"<thead>(.*?)</thead>(.*?)</tbody>", page, re.DOTALL):
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
            assert len(re.findall(r"<t[hd][ >]", row)) == len(re.findall(r"<t[hd][ >]", head))
