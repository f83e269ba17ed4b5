"""Everything that is measured of one model, under the names and in the form of open-unlearning's logs.

Axes: n records of a group.

Each metric is ``{"agg_value": x, "value_by_index": {position: {...}}}``. Records go by their position among the training rows
(held-out ones: among the rows of their split), never by id or text: a panel is kept after the records are gone. ``low`` and
``high`` are the 95 % bootstrap interval of the figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from curation.models.language import generate
from curation.unlearning.verification.intervals import ForgetQuality, bootstrap, forget_quality
from curation.unlearning.verification.klom import margins
from curation.unlearning.verification.membership import Attack, attack, attack_scores, privleak
from curation.unlearning.verification.memorisation import (
    TruthAggregate,
    aggregate_truth_ratio,
    exact_memorisation,
    extraction_strength,
    harmonic_mean,
    probability,
    rouge_l,
    truth_ratio,
)
from curation.unlearning.verification.plain import plain
from curation.unlearning.verification.records import Group, Records, Texts, Variants
from curation.unlearning.verification.scan import Scan, scan

Metric = dict[str, Any]
PRIVLEAK_ATTACK = "mia_min_k"
"""Whose AUC PrivLeak is made of."""
TPR = "tpr_at_1_fpr"
"""Of each attack, beside its AUC: `Attack.tpr`."""
UTILITY = ("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio")
"""What model utility is the harmonic mean of: TOFU's nine without the two sets of the world's facts."""


@dataclass(frozen=True)
class Panel:
    """Of one model.

    Attributes:
        metrics: by open-unlearning's names.
        losses_forget: negative log-likelihood a token of each record to be forgotten, nats, float64 [n].
        losses_retain: of those that stay.
        losses_holdout: of those no model was trained on; empty where there are none.
        exact_forget: share of the answers that greedy generation gives token for token; a classifier's accuracy.
        exact_retain: likewise.
        truth_ratios: of the records to be forgotten that have wrong answers; None: none has.
        attacks: by name; empty without held-out rows.
        extraction: extraction strength of the records to be forgotten, float64 [n].
        margins_forget: mean log(p / (1 - p)) of their tokens, float64 [n].
        forget_quality: against the reference; None without one, or without truth ratios.
        scan_forget: the same records token by token, for the attack that compares with a reference.
        scan_retain: likewise.
        scan_holdout: likewise.
    """

    metrics: dict[str, Metric]
    losses_forget: np.ndarray
    losses_retain: np.ndarray
    losses_holdout: np.ndarray
    exact_forget: float
    exact_retain: float
    truth_ratios: np.ndarray | None
    attacks: dict[str, Attack]
    extraction: np.ndarray
    margins_forget: np.ndarray
    forget_quality: ForgetQuality | None
    scan_forget: Scan
    scan_retain: Scan
    scan_holdout: Scan | None

    def to_json(self) -> dict[str, Any]:
        """The metrics and the exact answers, as JSON can hold them: NaN and infinity become None."""
        found: dict[str, Any] = plain(
            {**self.metrics, "forget_exact": self.exact_forget, "retain_exact": self.exact_retain}
        )
        return found


@dataclass(frozen=True)
class Answers:
    """What a model makes of one group: the losses of its answers and of others, and its truth ratios."""

    scanned: Scan
    paraphrased: np.ndarray | None = None
    perturbed: np.ndarray | None = None
    ratios: np.ndarray | None = None
    """[n]; NaN of a record without wrong answers."""
    rouge: np.ndarray | None = None
    knowledge: np.ndarray | None = None
    """F1 of the same answers [n]."""
    verbatim: np.ndarray | None = None
    """F1 of how it goes on from the first half of each answer [n]; not asked of rows that stay."""


def measure(model: nn.Module, records: Records, reference: Panel | None = None) -> Panel:
    """Measure a model where it lies; nothing of it is changed.

    Args:
        model: a classifier for labelled rows; for questions a language model that can generate.
        records: what is asked.
        reference: of a model that never saw the records to be forgotten, for forget quality, PrivLeak (0.5 stands for its
            AUC where there is none) and the reference attack.

    Raises:
        ValueError: the model's output does not fit the records.
    """
    forget, retain = _answers(model, records.forget, verbatim=True), _answers(model, records.retain)
    unseen = scan(model, records.holdout.rows) if records.holdout else None
    metrics = {**_group_metrics("forget", records.forget, forget), **_group_metrics("retain", records.retain, retain)}
    extraction = extraction_strength(forget.scanned)
    metrics["extraction_strength"] = _metric(records.forget, extraction, "score")
    metrics["exact_memorization"] = _metric(records.forget, exact_memorisation(forget.scanned), "score")
    if retain.rouge is not None and retain.ratios is not None:
        metrics["model_utility"] = _utility(retain.scanned.losses, retain.rouge, retain.ratios)
    ratios = None if forget.ratios is None else forget.ratios[np.isfinite(forget.ratios)]
    quality = None
    if ratios is not None and reference is not None and reference.truth_ratios is not None:
        quality = forget_quality(ratios, reference.truth_ratios)
        d = quality.statistic
        metrics["forget_quality"] = {
            "agg_value": quality.p_value,
            "value_by_index": {},
            "statistic": d.point,
            "low": d.low,
            "high": d.high,
        }
    attacks: dict[str, Attack] = {}
    if records.holdout is not None and unseen is not None:
        ours = _scores(records.forget, forget.scanned, None if reference is None else reference.scan_forget)
        theirs = _scores(records.holdout, unseen, None if reference is None else reference.scan_holdout)
        attacks, found = _attack_metrics(records.forget, records.holdout, ours, theirs)
        metrics |= {**found, "privleak": _privleak(attacks, reference)}
    return Panel(
        metrics,
        forget.scanned.losses,
        retain.scanned.losses,
        np.empty(0) if unseen is None else unseen.losses,
        float(exact(forget.scanned).mean()),
        float(exact(retain.scanned).mean()),
        ratios,
        attacks,
        extraction,
        np.array([margins(row).mean() for row in forget.scanned.log_p]),
        quality,
        forget.scanned,
        retain.scanned,
        unseen,
    )


def _answers(model: nn.Module, group: Group, *, verbatim: bool = False) -> Answers:
    scanned, texts = scan(model, group.rows), group.texts
    if texts is None:
        return Answers(scanned)
    right, wrong = (_variant_losses(model, each, len(group)) for each in (texts.paraphrased, texts.perturbed))
    ratios = None
    if wrong is not None:
        # the answer itself stands for a right one in other words where a record has none
        told = scanned.losses if right is None else np.where(np.isnan(right), scanned.losses, right)
        ratios = truth_ratio(told[:, None], wrong[:, None])
    told_so = _generated(model, texts, scanned, [0] * len(group))
    recall, f1 = (rouge_l(texts.answers, told_so, measure) for measure in ("recall", "fmeasure"))
    return Answers(scanned, right, wrong, ratios, recall, f1, _verbatim(model, texts, scanned) if verbatim else None)


def _verbatim(model: nn.Module, texts: Texts, scanned: Scan) -> np.ndarray:
    """ROUGE-L F1 of the second half of each answer [n], the first being given; an answer of one token is asked for whole."""
    given = [len(ids) // 2 for ids in texts.answer_ids]
    wanted = [texts.decode(ids[count:]) for ids, count in zip(texts.answer_ids, given, strict=True)]
    return rouge_l(wanted, _generated(model, texts, scanned, given), "fmeasure")


def _variant_losses(model: nn.Module, variants: Variants | None, count: int) -> np.ndarray | None:
    return None if variants is None else variants.per_record(scan(model, variants.rows).losses, count)


def _generated(model: nn.Module, texts: Texts, scanned: Scan, given: Sequence[int]) -> list[str]:
    """What greedy generation gives after the first tokens of each answer, as many as `given`; not generated where it is known."""
    most = texts.most_after(given)
    found = [ids[count : count + most] for ids, count in zip(texts.answer_ids, given, strict=True)]
    asked = [i for i, correct in enumerate(scanned.correct) if not correct[given[i] :].all()]
    begun = [[*texts.prompts[i], *texts.answer_ids[i][: given[i]]] for i in asked]
    made = generate(model, begun, most, texts.end_id, texts.pad_id)
    for i, ids in zip(asked, made, strict=True):
        found[i] = ids
    return [texts.decode(ids) for ids in found]


def exact(scanned: Scan) -> np.ndarray:
    """1.0 for each answer that greedy generation gives [n]: if and only if each token is the likeliest after those before it."""
    return np.array([float(row.all()) for row in scanned.correct])


def _group_metrics(name: str, group: Group, answers: Answers) -> dict[str, Metric]:
    losses = answers.scanned.losses
    found = {f"{name}_Q_A_Prob": _probability_metric(group, losses)}
    if group.texts is None:
        found[f"{name}_accuracy"] = _metric(group, exact_memorisation(answers.scanned), "score")
    if answers.rouge is not None:
        found[f"{name}_Q_A_ROUGE"] = _metric(group, answers.rouge, "rougeL_recall")
    for key, values in (("knowmem", answers.knowledge), ("verbmem", answers.verbatim)):
        if values is not None:
            found[f"{name}_{key}_ROUGE"] = _metric(group, values, "rougeL_f1")
    for key, others in (("PARA", answers.paraphrased), ("PERT", answers.perturbed)):
        if others is not None:
            found[f"{name}_Q_A_{key}_Prob"] = _probability_metric(group, others)
    if answers.ratios is not None:
        forgotten = name == "forget"
        how: TruthAggregate = "closer_to_1_better" if forgotten else "true_better"
        found["forget_truth_ratio" if forgotten else "retain_Truth_Ratio"] = _metric(
            group, answers.ratios, "score", lambda values: aggregate_truth_ratio(values, how)
        )
    return found


def _probability_metric(group: Group, losses: np.ndarray) -> Metric:
    """Of losses a token [n]; those of several variants were averaged, so that it is the geometric mean."""
    found = _metric(group, probability(losses), "prob")
    for entry, loss in zip(found["value_by_index"].values(), losses[np.isfinite(losses)], strict=True):
        entry["avg_loss"] = float(loss)
    return found


def _utility(losses: np.ndarray, rouge: np.ndarray, ratios: np.ndarray) -> Metric:
    """Of the rows that stay [n]: the harmonic mean of `UTILITY`, its interval by resampling rows.

    Rows with a truth ratio and rows without one are resampled apart, as many of each as there are: among all of them a draw
    may hold none of a few with one, and the figure of that is not defined.
    """
    table = np.stack([probability(losses), rouge, ratios], axis=1)  # [n, 3]
    has = np.isfinite(ratios)
    if not has.any():
        return {"agg_value": math.nan, "value_by_index": {}, "low": math.nan, "high": math.nan}

    def figure(*parts: np.ndarray) -> float:
        rows = np.concatenate(parts)
        truth = aggregate_truth_ratio(parts[0][:, 2], "true_better")
        return harmonic_mean([float(rows[:, 0].mean()), float(rows[:, 1].mean()), truth])

    parts = [part for part in (table[has], table[~has]) if len(part)]
    estimate = bootstrap(figure, parts)
    return {"agg_value": estimate.point, "value_by_index": {}, "low": estimate.low, "high": estimate.high}


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _metric(group: Group, values: np.ndarray, key: str, figure: Any = _mean) -> Metric:
    """Of values [n], NaN of records that have none."""
    there = np.isfinite(values)
    estimate = bootstrap(figure, [values[there]])
    return {
        "agg_value": estimate.point,
        "value_by_index": _by_index(group.positions[there], values[there], key),
        "low": estimate.low,
        "high": estimate.high,
    }


def _by_index(positions: np.ndarray, values: np.ndarray, key: str) -> dict[str, dict[str, float]]:
    return {str(place): {key: value} for place, value in zip(positions.tolist(), values.tolist(), strict=True)}


def _scores(group: Group, scanned: Scan, reference: Scan | None) -> dict[str, np.ndarray]:
    return attack_scores(scanned, None if group.texts is None else group.texts.texts, reference)


def _attack_metrics(
    forget: Group, holdout: Group, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[dict[str, Attack], dict[str, Metric]]:
    """Every attack, from its scores of the records to be forgotten and of held-out ones."""
    attacks = {name: attack(ours[name], theirs[name]) for name in ours}
    metrics = {
        name: {
            "agg_value": found.auc.point,
            "value_by_index": {},
            "low": found.auc.low,
            "high": found.auc.high,
            TPR: found.tpr._asdict(),
            "forget": {"value_by_index": _by_index(forget.positions, ours[name], "score")},
            "holdout": {"value_by_index": _by_index(holdout.positions, theirs[name], "score")},
        }
        for name, found in attacks.items()
    }
    return attacks, metrics


def _privleak(attacks: Mapping[str, Attack], reference: Panel | None) -> Metric:
    """In percent: 0 as the reference, below it under-, above it over-unlearned; NaN where the reference's AUC is 1."""
    auc = attacks[PRIVLEAK_ATTACK].auc
    least = 0.5 if reference is None else reference.attacks[PRIVLEAK_ATTACK].auc.point
    if least == 1:
        return {"agg_value": np.nan, "value_by_index": {}, "low": np.nan, "high": np.nan}
    # a higher AUC is a lower PrivLeak, so the ends change places
    point, low, high = (privleak(value, least) for value in (auc.point, auc.high, auc.low))
    return {"agg_value": point, "value_by_index": {}, "low": low, "high": high}
