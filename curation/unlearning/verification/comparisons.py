"""Tests of the records together: what an unlearned model shows of them, beside what models show that never saw them.

Axes: n records to be forgotten, S retrained models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from curation.unlearning.evidence_model import Test
from curation.unlearning.verification.intervals import ForgetQuality, bootstrap, forget_quality, holm
from curation.unlearning.verification.klom import LEAST_MODELS, klom_of_one, shifts
from curation.unlearning.verification.panel import TPR, Panel, exact
from curation.unlearning.verification.scan import Scan
from curation.unlearning.verification.verdicts import Probe, Verdicts

PAIRED = (
    "forget_Q_A_Prob",
    "forget_Q_A_PARA_Prob",
    "forget_Q_A_ROUGE",
    "forget_accuracy",
    "forget_knowmem_ROUGE",
    "forget_verbmem_ROUGE",
    "extraction_strength",
    "exact_memorization",
)
"""Metrics of each record, compared with their mean over the retrained models (Wilcoxon's signed ranks)."""
UNTESTED = (
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_knowmem_ROUGE",
    "retain_Truth_Ratio",
    "model_utility",
    "retain_accuracy",
    "forget_truth_ratio",
)
"""Shown with their interval and null, but without a p-value: they are not about what is left of the records, or another
test says the same."""
CHANCE = 0.5
"""AUC of samples that are alike: where no model was retrained, held-out rows alone stand in for what one would show."""


def comparisons(
    before: Panel,
    found: Panel,
    references: Sequence[Panel],
    quality: Sequence[ForgetQuality],
    quality_null: Sequence[ForgetQuality],
    verdicts: Verdicts,
    seed: int = 0,
) -> list[Test]:
    """All tests of an unlearned model; p-values are two-sided and corrected together (Holm).

    Args:
        before: of the model as it was.
        found: of the unlearned model.
        references: of the retrained ones; without any, tests have no null but that of an attack, and are not of what compares
            with them.
        quality: forget quality against each of these.
        quality_null: and between each two of them.
        verdicts: of the records; their gaps are told in standard deviations between seeds, below 0 = remembered.
        seed: of the intervals of these.
    """
    null = float(np.mean([each.statistic.point for each in quality_null])) if quality_null else None
    tests = [
        Test(f"forget_quality/retrained_{s}", *each.statistic[:3], null, each.statistic.n, each.p_value)
        for s, each in enumerate(quality)
    ]
    if before.truth_ratios is not None:
        known = [each.truth_ratios for each in references if each.truth_ratios is not None]
        apart = [forget_quality(before.truth_ratios, each).statistic.point for each in known]
        tests = [replace(test, before=point) for test, point in zip(tests, apart, strict=True)]
    tests += [_exactly("forget", [each.scan_forget for each in (before, found, *references)], seed)]
    tests += [_paired(name, before, found, references) for name in PAIRED if name in found.metrics]
    for name in found.attacks:
        others = [panel for panel in references if name in panel.attacks]  # retrained_0 is not attacked with itself
        if others or not references:
            tests += [_attacked(name, before, found, others), _found_out(name, before, found, others)]
    tests += [_exactly("retain", [each.scan_retain for each in (before, found, *references)], seed)]
    tests += [_shown(name, before, found, references) for name in UNTESTED if name in found.metrics]
    if references and "privleak" in found.metrics:  # against the first of them
        tests.append(replace(_shown("privleak", before, found, references[:1]), null=0.0))
    if len(references) >= LEAST_MODELS:
        tests.append(_margins(before, found, references, seed))
    for probe, gaps in verdicts.gaps.items():
        mean = bootstrap(lambda values: float(values.mean()), [gaps], seed)
        tests.append(Test(f"loss_gap/{probe}", mean.point, mean.low, mean.high, 0.0, mean.n))
    tested = [i for i, test in enumerate(tests) if test.p is not None]
    for i, p in zip(tested, holm([tests[i].p or 0.0 for i in tested]), strict=True):
        tests[i] = replace(tests[i], p_holm=p)
    return tests


def losses_asked(probes: Mapping[str, Probe], seed: int = 0) -> list[Test]:
    """The mean loss of the records by every probe, where no gap of it can be told for want of retrained models."""
    tests = []
    for name, probe in probes.items():
        mean = bootstrap(lambda values: float(values.mean()), [probe.after], seed)
        known = None if probe.before is None else float(probe.before.mean())
        tests.append(Test(f"forget_loss/{name}", *mean[:3], None, mean.n, before=known))
    return tests


def _mean(figures: Sequence[float]) -> float | None:
    """Of the retrained models; None where there is none."""
    return float(np.mean(figures)) if len(figures) else None


def _values(metric: Mapping[str, Any]) -> np.ndarray:
    """Of each record; the metric's own figure is the first of its entry."""
    return np.array([next(iter(entry.values())) for entry in metric["value_by_index"].values()])


def _exactly(name: str, scans: Sequence[Scan], seed: int) -> Test:
    """The share of answers given token for token: before, after, and by the retrained models."""
    before, after, *others = map(exact, scans)
    share = bootstrap(lambda values: float(values.mean()), [after], seed)
    null = _mean([each.mean() for each in others])
    return Test(f"{name}_exact", *share[:3], null, share.n, before=float(before.mean()))


def _paired(name: str, before: Panel, found: Panel, references: Sequence[Panel]) -> Test:
    if not references:
        return _shown(name, before, found, references)
    ours = _values(found.metrics[name])
    theirs = np.mean([_values(panel.metrics[name]) for panel in references], axis=0)
    differences = ours - theirs
    p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return replace(_shown(name, before, found, references), p=p)


def _attacked(name: str, before: Panel, found: Panel, references: Sequence[Panel]) -> Test:
    """An AUC against that of the retrained models, or chance; its error is that of samples that are alike."""
    attack = found.attacks[name]
    null = float(np.mean([panel.attacks[name].auc.point for panel in references])) if references else CHANCE
    p = float(2 * stats.norm.sf(abs(attack.auc.point - null) / attack.null_error))
    return Test(name, *attack.auc[:3], null, attack.auc.n, p, before=before.attacks[name].auc.point)


def _found_out(name: str, before: Panel, found: Panel, references: Sequence[Panel]) -> Test:
    """The share of records that the same attack finds at few false alarms."""
    tpr = found.attacks[name].tpr
    null = _mean([panel.attacks[name].tpr.point for panel in references])
    return Test(f"{name}/{TPR}", *tpr[:3], null, tpr.n, before=before.attacks[name].tpr.point)


def _margins(before: Panel, found: Panel, references: Sequence[Panel], seed: int) -> Test:
    """KLOM of one model, its interval by resampling records."""
    others = np.array([panel.margins_forget for panel in references])
    mean = bootstrap(lambda values: float(values.mean()), [shifts(found.margins_forget, others)], seed)
    known = klom_of_one(before.margins_forget, others)
    return Test("klom", *mean[:3], known.null_mean, mean.n, before=known.mean)


def _shown(name: str, before: Panel, found: Panel, references: Sequence[Panel]) -> Test:
    metric = found.metrics[name]
    there = [panel.metrics[name]["agg_value"] for panel in references if name in panel.metrics]
    rows = found.losses_retain if name == "model_utility" else found.losses_forget
    count = len(metric["value_by_index"]) or len(rows)
    null, known = _mean(there), before.metrics[name]["agg_value"]
    return Test(name, metric["agg_value"], metric["low"], metric["high"], null, count, before=known)
