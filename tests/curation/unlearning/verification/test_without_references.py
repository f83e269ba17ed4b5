"""What is told of an unlearned model where none was trained without the records: what was measured, and nothing else."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from curation.data.people import People
from curation.data.table import TableData
from curation.models.build import build_model
from curation.unlearning.evidence_words import meaning
from curation.unlearning.verification.assessment import Assessment, AssessmentOptions, assess
from curation.unlearning.verification.quantisation import quantised
from curation.unlearning.verification.records import Records, records_of
from curation.unlearning.verification.relearning import losses_after_relearning, relearned
from curation.unlearning.verification.scan import scan
from tests.curation.data.builders import feature_frame, write

OPTIONS = AssessmentOptions(quantise=(4,), relearn_steps=2, retain_drop=0.0)
NO_MODEL = "7 UNTESTABLE of 7; no model was trained without them, so there was none to compare with"


def told(before: nn.Module, after: nn.Module, records: Records) -> Assessment:
    """Nothing of it may come of a division by nothing, or of a mean of none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return assess(before, after, [], records, OPTIONS)


@pytest.fixture(scope="module")
def asked() -> tuple[nn.Module, nn.Module, Records]:
    """A model that has begun to learn of two people, one that knows nothing, and the facts of one of the people."""
    torch.set_num_threads(1)
    data = People(n_people=2, n_holdout=1)
    records = records_of(data, [name for name in data.train_ids() if name.startswith("person-01")])
    size = {"width": 16, "heads": 2, "depth": 1}
    after = build_model("curation.models.TinyGPT", size, data.model_defaults(), seed=0)
    before = after
    for group in (records.forget, records.retain):
        before = relearned(before, group.rows, steps=10, lr=1e-2)
    return before, after, records


def test_of_questions_all_is_told_that_needs_no_other_model(asked: tuple[nn.Module, nn.Module, Records]) -> None:
    before, after, records = asked
    found = told(before, after, records)
    assert found.verdicts.verdicts == ["UNTESTABLE"] * 7 and found.tier == "E3" and not found.passed
    known, left = found.panels["before"], found.panels["after"]
    assert set(found.panels) == {"before", "after"} and left.truth_ratios is not None
    assert found.failures[0] == f"records: {NO_MODEL}"
    assert (
        found.failures[1].startswith("retained: probability ") and " below the former model's 0." in found.failures[1]
    )
    assert not found.gaps and found.klom is None and not found.forget_quality and not found.forget_quality_null
    tests = {test.name: test for test in found.tests}
    measures = {name.partition("/")[0] for name in tests}
    assert {"forget_exact", "extraction_strength", "mia_zlib", "model_utility", "forget_truth_ratio"} <= measures
    assert not {"forget_quality", "privleak", "mia_reference", "klom", "loss_gap"} & measures
    assert all(meaning(name) and test.point is not None for name, test in tests.items())
    compared = {name for name, test in tests.items() if test.null is not None}
    assert compared == {name for name, test in tests.items() if test.p is not None} == set(left.attacks)
    for name in compared:  # with held-out rows, which are no likelier than such records would be
        attack, test = left.attacks[name], tests[name]
        assert test.null == 0.5 and test.before == known.attacks[name].auc.point
        assert test.p == pytest.approx(2 * stats.norm.sf(abs(attack.auc.point - 0.5) / attack.null_error))
        assert test.p_holm is not None and test.p_holm >= test.p
    rows = records.forget.rows
    losses = {
        "direct": left.losses_forget,
        "quantised_4": scan(quantised(after, 4), rows).losses,
        "relearned": losses_after_relearning(after, rows, steps=2, lr=OPTIONS.relearn_lr, seed=0),
    }
    assert {name: tests[f"forget_loss/{name}"].point for name in losses} == {
        name: float(each.mean()) for name, each in losses.items()
    }
    assert tests["forget_loss/direct"].before == known.losses_forget.mean() < losses["direct"].mean()
    assert "NaN" not in json.dumps(found.to_json(), allow_nan=False)


def test_without_held_out_rows_nothing_at_all_is_compared(asked: tuple[nn.Module, nn.Module, Records]) -> None:
    before, _, records = asked
    found = told(before, before, replace(records, holdout=None))
    assert found.tier == "E4" and found.failures == [f"records: {NO_MODEL}"], "what stays is all there"
    assert all(test.null is None and test.p is None and test.p_holm is None for test in found.tests)
    assert not any(test.name.startswith("mia_") for test in found.tests)


def test_of_a_classifier_likewise(tmp_path: Path) -> None:
    data = TableData(write(feature_frame(60), tmp_path), label="y", id="key", features=["width", "height"])
    records = records_of(data, data.train_ids()[:6])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    found = told(model, relearned(model, records.retain.rows, steps=5, lr=1e-2), records)
    assert found.verdict == "UNTESTABLE" and found.tier == "E3" and not found.passed
    names = {test.name for test in found.tests}
    assert {"forget_accuracy", "mia_loss", "mia_loss/tpr_at_1_fpr", "forget_loss/relearned"} <= names
    assert all(meaning(name) for name in names) and np.isfinite([test.point for test in found.tests]).all()
    json.dumps(found.to_json(), allow_nan=False)
