"""Whether an unlearned model can be told from models that never saw the records, by everything that was measured.

Axes: n records to be forgotten, S models retrained without them from different seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from curation.unlearning.evidence_model import Test
from curation.unlearning.verification.comparisons import comparisons, losses_asked
from curation.unlearning.verification.intervals import ForgetQuality, forget_quality, gap_in_seed_sds
from curation.unlearning.verification.klom import KLOM, LEAST_MODELS, klom_of_one
from curation.unlearning.verification.panel import Panel, measure
from curation.unlearning.verification.plain import plain
from curation.unlearning.verification.quantisation import quantised
from curation.unlearning.verification.records import Records
from curation.unlearning.verification.relearning import losses_after_relearning
from curation.unlearning.verification.retained import Kept, kept
from curation.unlearning.verification.scan import scan
from curation.unlearning.verification.verdicts import TOLERANCE, WORST_FIRST, Probe, Verdict, Verdicts, judge

WORST_RETAINED = 10
"""Retained rows told as the ones that suffered most."""
RELATIVE = ("forget_quality", "privleak", "mia_reference")
"""Metrics that compare with retrained_0, which therefore has no such figure of its own."""
MANY = 20
"""Models to compare with from which on the evidence is of tier E1."""


@dataclass(frozen=True)
class AssessmentOptions:
    """What counts as alike, declared before anything is measured, and how hard it is looked for.

    Attributes:
        tolerance: largest gap to the retrained models that passes, in standard deviations between their seeds.
        quantise: bits a weight is rounded to, 2 to 8 each.
        relearn_steps: optimizer steps on one half of the records before the other half is asked for; 0: not done. One
            record alone has no halves.
        relearn_lr: learning rate of these.
        retain_drop: how far the share of the rows that stay which are answered exactly, and the mean probability of their
            answers, may lie below the retrained models', or those of the model as it was where none was retrained, in [0, 1].
        seed: of the halves and of the batches.
    """

    tolerance: float = TOLERANCE
    quantise: tuple[int, ...] = (8, 4)
    relearn_steps: int = 5
    relearn_lr: float = 1e-3
    retain_drop: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what can be told to be wrong before anything is measured.

        Raises:
            ValueError: lists every value out of its range.
        """
        problems = []
        if not self.tolerance > 0:
            problems.append(f"tolerance must be above 0, got {self.tolerance}")
        if not all(2 <= bits <= 8 for bits in self.quantise) or len(set(self.quantise)) < len(self.quantise):
            problems.append(f"quantise must be bits from 2 to 8, each once, got {self.quantise}")
        if self.relearn_steps < 0 or not self.relearn_lr > 0:
            problems.append(
                f"relearn_steps must not be negative and relearn_lr above 0, got {self.relearn_steps} and {self.relearn_lr}"
            )
        if not 0 <= self.retain_drop <= 1:
            problems.append(f"retain_drop must be a share from 0 to 1, got {self.retain_drop}")
        if problems:
            raise ValueError("assessment: " + "; ".join(problems))


@dataclass(frozen=True)
class Assessment:
    """What was found.

    Attributes:
        panels: "before", "after", "retrained_0", ...; each against retrained_0, itself against none. All else that compares
            with these is empty or None where there is none.
        verdicts: of each record, in the order of the records.
        kept: what is left of the rows that stay.
        tests: of the records together, with p-values corrected for their number.
        gaps: metric -> how far it is from that of the retrained models, in standard deviations between seeds; empty with
            fewer than two of them.
        forget_quality: of the unlearned model against each retrained one; empty without truth ratios.
        forget_quality_null: between each two retrained ones.
        klom: None with fewer than three retrained models.
        collateral: (position among the training rows, id, loss before, loss after) of the retained rows that suffered
            most, worst first.
        options: as declared.
    """

    panels: dict[str, Panel]
    verdicts: Verdicts
    kept: list[Kept]
    tests: list[Test]
    gaps: dict[str, float]
    forget_quality: list[ForgetQuality]
    forget_quality_null: list[ForgetQuality]
    klom: KLOM | None
    collateral: list[tuple[int, Any, float, float]]
    options: AssessmentOptions

    @property
    def failures(self) -> list[str]:
        """The checks that failed, each with how far; no record is named.

        There are two: every record was shown to be treated as by models that never saw it, and what stays was kept.
        """
        found = []
        if not self.verdicts.gaps:
            count = len(self.verdicts.verdicts)
            found.append(
                f"records: {count} UNTESTABLE of {count}; no model was trained without them, so there was none to compare with"
            )
        elif not self.verdicts.shown:
            gap, probe = self.verdicts.farthest
            others = [each for each in self.verdicts.verdicts if each != "CONSISTENT_WITH_RETRAIN"]
            counts = ", ".join(f"{others.count(each)} {each}" for each in WORST_FIRST if each in others)
            margin = self.verdicts.margins[probe]
            allowed = f"{margin:.1f} are allowed"
            if margin < 0:
                allowed = "with so few models none can be shown to be within the tolerance"
            elif abs(gap) <= margin:
                allowed += ", but no record was known before"
            found.append(
                f"records: {counts} of {len(self.verdicts.verdicts)}; the farthest gap is {gap:.1f} seed sds ({probe}), {allowed}"
            )
        found += [
            f"retained: {each.figure} {each.after:.3f} is {each.drop:.3f} below the {each.whose} {each.expected:.3f}, "
            f"{each.allowed:g} is allowed"
            for each in self.kept
            if not each.passed
        ]
        return found

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def tier(self) -> str:
        """How strong this is as evidence, of `evidence_model.TIERS`: by what there was to compare with."""
        references = sum(name.startswith("retrained") for name in self.panels)
        if references:
            return "E1" if references >= MANY else "E2"
        return "E3" if self.panels["after"].attacks else "E4"

    @property
    def verdict(self) -> Verdict:
        """That of the worst record."""
        return self.verdicts.worst

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values but ``collateral``: records go by position, and none by its id."""
        found: dict[str, Any] = plain(
            {
                "verdict": self.verdict,
                "passed": self.passed,
                "failures": self.failures,
                "kept": [asdict(each) for each in self.kept],
                "verdicts": self.verdicts.verdicts,
                "record_gaps": self.verdicts.gaps,
                "allowed_gaps": self.verdicts.margins,
                "tests": [asdict(test) for test in self.tests],
                "gaps": self.gaps,
                "forget_quality": self.forget_quality,
                "forget_quality_null": self.forget_quality_null,
                "klom": self.klom,
                "options": asdict(self.options),
                "panels": {name: panel.to_json() for name, panel in self.panels.items()},
            }
        )
        return found


def assess(
    before: nn.Module,
    after: nn.Module,
    retrained: Sequence[nn.Module],
    records: Records,
    options: AssessmentOptions,
) -> Assessment:
    """Measure a model before and after unlearning and models that never saw the records, and compare.

    Args:
        before: the model as it was.
        after: the unlearned one.
        retrained: trained like ``before`` without the records, each from a seed of its own; read in turn several times,
            so a sequence that loads them when asked keeps one in memory. With fewer than two nothing can be shown, and
            every record is UNTESTABLE. With none, what was measured of the others is told all the same.
        records: what is asked.
        options: what counts as alike.

    Raises:
        ValueError: an option out of its range, or a model that does not fit the records.
    """
    first = measure(retrained[0], records) if retrained else None
    references = [] if first is None else [first, *(measure(model, records, first) for model in retrained[1:])]
    panels = {"before": measure(before, records, first), "after": measure(after, records, first)}
    panels |= {f"retrained_{s}": panel for s, panel in enumerate(references)}
    found = panels["after"]
    probes = _probes(panels["before"], after, retrained, references, found, records, options)
    verdicts = judge(probes, options.tolerance, blind=math.log(records.choices))
    quality, null = _forget_qualities(found, references)
    tests = comparisons(panels["before"], found, references, quality, null, verdicts, options.seed)
    return Assessment(
        panels,
        verdicts,
        kept(panels["before"], found, references, options.retain_drop),
        tests if references else [*tests, *losses_asked(probes, options.seed)],
        _gaps(found, references),
        quality,
        null,
        klom_of_one(found.margins_forget, np.array([panel.margins_forget for panel in references]))
        if len(references) >= LEAST_MODELS
        else None,
        _collateral(records, panels["before"].losses_retain, found.losses_retain),
        options,
    )


def _probes(
    before: Panel,
    after: nn.Module,
    retrained: Sequence[nn.Module],
    references: Sequence[Panel],
    found: Panel,
    records: Records,
    options: AssessmentOptions,
) -> dict[str, Probe]:
    """Every way of asking for the records; the last ones bring back what is only hidden."""
    rows, shape = records.forget.rows, (len(retrained), len(records.forget))
    theirs = np.array([panel.losses_forget for panel in references]).reshape(shape)
    probes = {"direct": Probe(found.losses_forget, theirs, before.losses_forget)}

    def put(ask: Callable[[nn.Module], np.ndarray]) -> Probe:
        return Probe(ask(after), np.array([ask(model) for model in retrained]).reshape(shape))

    for bits in options.quantise:
        probes[f"quantised_{bits}"] = put(lambda model, bits=bits: scan(quantised(model, bits), rows).losses)  # type: ignore[misc]
    if options.relearn_steps and len(records.forget) > 1:
        probes["relearned"] = put(
            lambda model: losses_after_relearning(
                model, rows, steps=options.relearn_steps, lr=options.relearn_lr, seed=options.seed
            )
        )
    return probes


def _forget_qualities(found: Panel, references: Sequence[Panel]) -> tuple[list[ForgetQuality], list[ForgetQuality]]:
    """Against each retrained model, and between each two of them."""
    ratios = [panel.truth_ratios for panel in references if panel.truth_ratios is not None]
    if found.truth_ratios is None:
        return [], []
    return (
        [forget_quality(found.truth_ratios, each) for each in ratios],
        [forget_quality(one, other) for one, other in combinations(ratios, 2)],
    )


def _gaps(found: Panel, references: Sequence[Panel]) -> dict[str, float]:
    if len(references) < 2:
        return {}
    return {
        name: gap_in_seed_sds(metric["agg_value"], [panel.metrics[name]["agg_value"] for panel in references])
        for name, metric in found.metrics.items()
        if name not in RELATIVE and all(name in panel.metrics for panel in references)
    }


def _collateral(records: Records, before: np.ndarray, after: np.ndarray) -> list[tuple[int, Any, float, float]]:
    retain = records.retain
    worst = np.argsort(before - after, kind="stable")[:WORST_RETAINED]
    return [(int(retain.positions[i]), retain.ids[i], float(before[i]), float(after[i])) for i in worst]
