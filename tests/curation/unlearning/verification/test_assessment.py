"""Real small models, trained for a second each: what is found of one that never saw the records, and of those that cheat."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import nn

from curation.data.people import People
from curation.data.table import TableData
from curation.errors import DataError
from curation.models.build import build_model
from curation.models.language import generate
from curation.unlearning.evidence_words import meaning
from curation.unlearning.rows import Rows
from curation.unlearning.verification.assessment import Assessment, AssessmentOptions, assess
from curation.unlearning.verification.membership import attack
from curation.unlearning.verification.memorisation import rouge_l
from curation.unlearning.verification.panel import UTILITY, Panel, measure
from curation.unlearning.verification.records import Records, records_of
from curation.unlearning.verification.reference_logs import (
    ReferenceLogs,
    forget_quality_against,
    privleak_against,
    read_reference_logs,
)
from curation.unlearning.verification.relearning import relearned
from curation.unlearning.verification.retained import kept
from curation.unlearning.verification.scan import scan
from tests.curation.data.builders import feature_frame, write

SIZE = {"width": 32, "heads": 2, "depth": 1}
OPTIONS = AssessmentOptions(tolerance=6.0, relearn_lr=1e-2)


def rows_of(data: People, positions: np.ndarray) -> Rows:
    return Rows(data.train_dataset, positions, data.collate, 28)


def taught(data: People, rows: Rows, seed: int) -> nn.Module:
    """A model that has learned some rows."""
    torch.set_num_threads(1)
    model = build_model("curation.models.TinyGPT", SIZE, data.model_defaults(), seed=seed)
    return relearned(model, rows, steps=60, lr=1e-2, seed=seed)


@dataclass(frozen=True)
class World:
    data: People
    records: Records
    before: nn.Module
    retrained: list[nn.Module]

    def judge(self, after: nn.Module, seeds: int = 3) -> Assessment:
        return assess(self.before, after, self.retrained[:seeds], self.records, OPTIONS)


@pytest.fixture(scope="module")
def world() -> World:
    """28 facts about 4 people, of whom one is to be forgotten, and 4 models that never heard of that one."""
    data = People(n_people=4, n_holdout=2)
    ids = data.train_ids()
    records = records_of(data, [name for name in ids if name.startswith("person-01")])
    stays = np.setdiff1d(np.arange(len(ids)), records.forget.positions)
    retrained = [taught(data, rows_of(data, stays), seed) for seed in range(1, 5)]
    return World(data, records, taught(data, rows_of(data, np.arange(len(ids))), 0), retrained)


@pytest.fixture(scope="module")
def another(world) -> Assessment:
    """Of a model retrained from one more seed."""
    return world.judge(world.retrained[3])


@pytest.fixture(scope="module")
def unchanged(world) -> Assessment:
    return world.judge(world.before, seeds=2)


def test_records_are_those_asked_for_and_others_that_stay(world):
    records = world.records
    assert len(records.forget) == 7 and len(records.retain) == 21 and len(records.holdout) == 14
    assert all(name.startswith("person-01") for name in records.forget.ids)
    assert not set(records.forget.ids) & set(records.retain.ids)
    ids = world.data.train_ids()
    assert [ids[i] for i in records.retain.positions] == records.retain.ids
    few = records_of(world.data, ids[:1], retain_rows=5)
    assert len(few.retain) == len(few.holdout) == 5
    for row, text in enumerate(records.forget.texts.answers):
        labels = records.forget.rows.batch([row])["labels"][0]
        assert world.data.decode(labels[labels >= 0].tolist()) == text


@pytest.mark.parametrize(
    ("ids", "told"),
    [(["nobody"], "no training row has the id: .*'nobody'"), ([], "got 0 of"), (["person-00/award"] * 2, "each once")],
)
def test_ids_that_cannot_be_forgotten_are_told(world, ids, told):
    with pytest.raises(DataError, match=told):
        records_of(world.data, ids)


def test_a_model_that_was_retrained_from_another_seed_is_not_taken_for_one_that_remembers(another):
    assert another.verdicts.worst != "RESIDUAL"
    assert set(another.verdicts.gaps) == {"direct", "quantised_8", "quantised_4", "relearned"}
    assert all(each.p_value > 0.05 for each in another.forget_quality)
    assert all(test.p_holm > 0.05 for test in another.tests if test.p_holm is not None)
    assert another.klom.mean < 50


def test_an_unchanged_model_is_residual(unchanged):
    assert unchanged.verdicts.verdicts == ["RESIDUAL"] * 7
    assert not unchanged.passed
    (failure,) = unchanged.failures  # what stays is all there
    assert failure.startswith("records: 7 RESIDUAL of 7; the farthest gap is -")
    before, after = unchanged.panels["before"], unchanged.panels["after"]
    assert after.exact_forget == before.exact_forget == after.exact_retain == 1
    assert unchanged.panels["retrained_0"].exact_forget == 0
    assert unchanged.panels["retrained_0"].exact_retain == 1
    assert unchanged.gaps["extraction_strength"] > 3
    assert max(abs(b - a) for _, _, b, a in unchanged.collateral) == 0
    by_name = {test.name: test for test in unchanged.tests}
    assert by_name["forget_Q_A_Prob"].p < 0.05
    assert by_name["privleak"].point < -80


def test_noise_is_over_unlearned_and_what_it_spoilt_is_told(world):
    noise = build_model("curation.models.TinyGPT", SIZE, world.data.model_defaults(), seed=9)
    found = world.judge(noise, seeds=2)
    assert found.verdicts.worst == "OVER_UNLEARNED"
    position, name, before, after = found.collateral[0]
    assert world.data.train_ids()[position] == name
    assert after > before + 3
    assert found.panels["after"].metrics["model_utility"]["agg_value"] < 0.2
    records, *lost = found.failures
    assert records.startswith("records: ") and "OVER_UNLEARNED of 7; the farthest gap is " in records
    assert lost[0] == "retained: exact 0.000 is 1.000 below the retrained models' 1.000, 0.1 is allowed"
    assert lost[1].startswith("retained: probability 0.00")
    assert found.to_json()["failures"] == found.failures


def test_what_stays_is_to_be_kept_whatever_is_found_of_the_records(world, another):
    """Figures that retrained models set; forgetting all of it is not passed, keeping more than they is."""
    shown = replace(
        another.verdicts, verdicts=["CONSISTENT_WITH_RETRAIN"] * 7, margins=dict.fromkeys(another.verdicts.gaps, 99.0)
    )
    assert replace(another, verdicts=shown).passed
    panels = another.panels
    references = [panel for name, panel in panels.items() if name.startswith("retrained")]
    spoilt = replace(panels["after"], exact_retain=0.85, losses_retain=panels["after"].losses_retain + 0.05)
    lost = kept(panels["before"], spoilt, references, 0.1)
    assert [each.passed for each in lost] == [False, True]
    assert lost[1].after == pytest.approx(np.exp(-spoilt.losses_retain).mean())
    failed = replace(another, verdicts=shown, kept=lost)
    assert failed.failures == ["retained: exact 0.850 is 0.150 below the retrained models' 1.000, 0.1 is allowed"]
    assert not failed.passed and failed.verdict == "CONSISTENT_WITH_RETRAIN"
    weak = [replace(panel, exact_retain=0.8) for panel in references]
    assert all(each.passed for each in kept(panels["before"], spoilt, weak, 0.0)[:1])


def test_refusing_is_not_forgetting(world):
    """A model that says that it does not know, to everyone it is to forget."""
    data, forget = world.data, world.records.forget
    refusals = [data.encode(data.examples["question"][int(i)], "I do not know.") for i in forget.positions]
    refusing = relearned(world.before, Rows(refusals, np.arange(7), data.collate), steps=20, lr=1e-2)
    found = world.judge(refusing, seeds=2)
    assert found.panels["after"].exact_forget == 0
    assert found.verdicts.worst in ("RESIDUAL", "OVER_UNLEARNED")


def test_what_is_only_suppressed_comes_back_when_some_of_it_is_learned_again(world):
    """The last layer alone is turned off, as far as makes the losses those of a model that never saw the records."""
    suppressed, forget = copy.deepcopy(world.before), world.records.forget.rows
    target = np.mean([scan(model, forget).losses.mean() for model in world.retrained[:2]])
    low, high = 0.0, 40.0
    for _ in range(12):  # bisection
        turn = (low + high) / 2
        with torch.no_grad():
            suppressed.norm.weight.copy_(world.before.norm.weight)
            suppressed.norm.bias.copy_(world.before.norm.bias + turn * world.before.head.weight[1])
        low, high = (turn, high) if scan(suppressed, forget).losses.mean() < target else (low, turn)
    found = world.judge(suppressed, seeds=2)
    assert found.panels["after"].exact_forget == 0
    assert found.verdicts.worst == "RESIDUAL"
    assert found.verdicts.gaps["relearned"].mean() < -found.verdicts.margins["relearned"]


def test_held_out_rows_cannot_be_told_from_each_other(world):
    losses = measure(world.before, world.records).losses_holdout
    found = attack(losses[::2], losses[1::2])
    assert found.auc.low <= 0.5 <= found.auc.high


def test_a_panel_has_the_keys_and_the_form_of_open_unlearning(world, unchanged):
    panel = unchanged.panels["after"]
    for name in (
        "forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "forget_truth_ratio",
        "forget_quality", "retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio", "model_utility",
        "extraction_strength", "exact_memorization", "privleak", "mia_loss", "mia_zlib", "mia_min_k",
        "mia_min_k_plus_plus", "mia_reference", "forget_knowmem_ROUGE", "forget_verbmem_ROUGE", "retain_knowmem_ROUGE",
    ):  # fmt: skip
        assert {"agg_value", "value_by_index"} <= panel.metrics[name].keys(), name
        assert np.isfinite(panel.metrics[name]["agg_value"]), name
    entries = panel.metrics["forget_Q_A_Prob"]["value_by_index"]
    assert list(entries) == [str(i) for i in world.records.forget.positions]
    np.testing.assert_allclose([e["prob"] for e in entries.values()], np.exp(-panel.losses_forget))


def test_the_truth_ratio_is_that_of_each_variant_asked_by_hand(world):
    data, model = world.data, world.retrained[0]
    row = data.examples.row(int(world.records.forget.positions[2]), named=True)

    def loss(answer: str) -> float:
        batch = data.collate([data.encode(row["question"], answer)])
        with torch.no_grad():
            log_p = model(batch["input_ids"])[0, :-1].log_softmax(-1)
        wanted = batch["labels"][0, 1:]
        asked = wanted >= 0
        return float(-log_p[asked].gather(1, wanted[asked][:, None]).mean())

    right, wrong = (np.mean([loss(a) for a in row[f"{kind}_answers"]]) for kind in ("paraphrased", "perturbed"))
    assert measure(model, world.records).truth_ratios[2] == pytest.approx(np.exp(right - wrong), rel=1e-4)


def test_exact_answers_are_those_that_greedy_generation_gives(world):
    texts = world.records.retain.texts
    partly = relearned(world.before, world.records.forget.rows, steps=4, lr=2e-3)
    found = generate(partly, texts.prompts, texts.max_new_tokens, texts.end_id, texts.pad_id)
    rows = (world.records.retain.rows.batch([i])["labels"][0] for i in range(len(texts.answers)))
    given = [ids == labels[labels >= 0].tolist()[:-1] for ids, labels in zip(found, rows, strict=True)]
    panel = measure(partly, world.records)
    assert panel.exact_retain == np.mean(given) and 0 < panel.exact_retain < 1
    rouge = rouge_l(texts.answers, [texts.decode(ids) for ids in found], "recall")  # whatever was generated for it
    assert panel.metrics["retain_Q_A_ROUGE"]["agg_value"] == rouge.mean()


def test_memorisation_is_asked_for_whole_answers_and_for_the_second_halves(world):
    texts, model = world.records.forget.texts, world.retrained[0]
    metrics = measure(model, world.records).metrics
    for name, share in (("knowmem", 0.0), ("verbmem", 0.5)):
        wanted, most = [], texts.most_after([int(share * len(ids)) for ids in texts.answer_ids])
        for prompt, answer in zip(texts.prompts, texts.answer_ids, strict=True):
            given = int(share * len(answer))
            ids, made = [*prompt, *answer[:given]], []
            while len(made) < most and made[-1:] != [texts.end_id]:  # the likeliest token, one after the other
                with torch.no_grad():
                    made.append(int(model(torch.tensor([ids + made]))[0, -1].argmax()))
            score = RougeScorer(["rougeL"], use_stemmer=True).score(
                texts.decode(answer[given:]), texts.decode([one for one in made if one != texts.end_id])
            )
            wanted.append(score["rougeL"].fmeasure)
        entries = metrics[f"forget_{name}_ROUGE"]["value_by_index"].values()
        assert [entry["rougeL_f1"] for entry in entries] == pytest.approx(wanted)


def test_every_test_has_its_interval_its_null_and_what_it_was_before(world, another):
    tests = {test.name: test for test in another.tests}
    assert {"klom", "model_utility", "mia_reference", "mia_loss/tpr_at_1_fpr", "forget_verbmem_ROUGE"} <= tests.keys()
    for name, test in tests.items():
        assert test.low <= test.point + 1e-9 and test.point <= test.high + 1e-9 and test.n and test.null is not None, (
            name
        )
        assert meaning(name), name
        assert (test.before is None) == name.startswith("loss_gap"), name
    assert tests["klom"].point == another.klom.mean and tests["klom"].before > 10 * tests["klom"].null
    after, before = another.panels["after"], another.panels["before"]
    assert tests["mia_loss/tpr_at_1_fpr"].point == after.attacks["mia_loss"].tpr.point
    assert after.to_json()["mia_loss"]["tpr_at_1_fpr"]["high"] == after.attacks["mia_loss"].tpr.high
    assert tests["forget_Q_A_Prob"].before == before.metrics["forget_Q_A_Prob"]["agg_value"] > 0.9
    parts = [after.metrics[name]["agg_value"] for name in UTILITY]
    assert tests["model_utility"].n == len(after.losses_retain) == 21 and tests["forget_exact"].before == 1
    assert tests["forget_quality/retrained_0"].before == before.forget_quality.statistic.point
    assert tests["model_utility"].point == pytest.approx(3 / sum(1 / part for part in parts))


def test_what_is_kept_names_no_forgotten_record(another, world):
    text = json.dumps(another.to_json(), allow_nan=False)
    assert not any(name in text for name in world.records.forget.ids)
    assert not any(answer in text for answer in world.records.forget.texts.answers)
    assert another.to_json()["verdict"] == another.verdicts.worst


def test_a_log_serves_as_reference_in_place_of_the_model_it_is_of(another, tmp_path):
    file = tmp_path / "EVAL.json"
    file.write_text(json.dumps(another.panels["retrained_0"].to_json()))
    logs, panel = read_reference_logs(file), another.panels["after"]
    assert forget_quality_against(panel, logs) == panel.forget_quality == another.forget_quality[0]
    assert privleak_against(panel, logs) == panel.metrics["privleak"]["agg_value"]
    fewer = ReferenceLogs(dict(list(logs.truth_ratios.items())[1:]), None)
    with pytest.raises(ValueError, match="of other records: 7 here, 6 there, 6 of them in both"):
        forget_quality_against(panel, fewer)
    counted = {str(number): ratio for number, ratio in enumerate(logs.truth_ratios.values())}  # as open-unlearning does
    assert forget_quality_against(panel, ReferenceLogs(counted, None)) == panel.forget_quality
    with pytest.raises(ValueError, match="has no mia_min_k"):
        privleak_against(panel, fewer)
    for text, told in (
        ("[]", "got list"),
        ("{", "expected a JSON log"),
        ('{"a": {}}', "neither"),
        ('{"mia_min_k": 1}', "as open"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=told):
            read_reference_logs(file)


def test_one_retrained_model_cannot_show_anything(world):
    found = world.judge(world.retrained[3], seeds=1)
    assert found.verdicts.worst == "UNTESTABLE"
    assert found.klom is None and not found.gaps and not found.forget_quality_null and found.tier == "E2"


def test_wrong_options_are_told_at_once():
    with pytest.raises(ValueError, match=r"tolerance .* quantise .* relearn_steps .* retain_drop"):
        AssessmentOptions(tolerance=0, quantise=(16,), relearn_steps=-1, retain_drop=2)


def test_a_classifier_is_judged_by_its_losses(tmp_path):
    data = TableData(write(feature_frame(60), tmp_path), label="y", id="key", features=["width", "height"])
    records = records_of(data, data.train_ids()[:6])
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        models.append(relearned(model, records.retain.rows, steps=60, lr=1e-2, seed=seed))
    found = assess(models[0], models[0], models[1:], records, OPTIONS)
    panel: Panel = found.panels["after"]
    assert panel.truth_ratios is None and not found.forget_quality
    assert panel.exact_retain == panel.metrics["retain_accuracy"]["agg_value"]
    assert {"mia_loss", "mia_reference"} <= panel.attacks.keys() and "mia_zlib" not in panel.attacks
    assert "forget_Q_A_ROUGE" not in panel.metrics
    assert found.verdicts.worst in ("NO_BASELINE", "CONSISTENT_WITH_RETRAIN", "OVER_UNLEARNED")
    assert all(meaning(test.name) for test in found.tests)
    json.dumps(found.to_json(), allow_nan=False)
