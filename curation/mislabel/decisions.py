"""What to do with each training row, and why, in words.

Axes: N training rows, K classes, k strongest proponents of a row. A score: HIGHER = MORE LIKELY MISLABELLED.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import polars as pl

from curation.mislabel.checks import check_labels, require_finite
from curation.mislabel.count import estimate_errors
from curation.mislabel.signals import DEFAULT_SIGNAL

logger = logging.getLogger(__name__)

Action = Literal["drop", "relabel", "review"]
ACTIONS = ("drop", "relabel", "review")
# Raised whenever the same rule and inputs would lead to other decisions than before.
VERSION = 1
# Rows that a relabel needs the suggestion to be likelier for than for all other classes together.
RELABEL_CONFIDENCE = 0.5


@dataclass(frozen=True)
class DecisionRule:
    """Which rows are flagged, and what becomes of them. Rows are flagged from the highest score down.

    Attributes:
        signal: name of the score, for the record.
        action: what becomes of a flagged row: ``"drop"``, ``"relabel"`` (to its suggested label) or ``"review"`` (nothing
            until a person decides).
        budget: flag so many rows (int), or that share of all rows (float in (0, 1)).
        threshold: flag the rows whose score is at least this. With neither a budget nor a threshold as many rows are flagged
            as labels are estimated to be wrong (``estimate_errors``).
        min_confidence: a flagged row whose suggested label has a lower leave-one-out probability goes to review instead.
            None: 0.5 for relabel, 0 for drop.
        review_band: rows that go to review though they just escaped the flag, as a fraction of the number flagged.

    Raises:
        ValueError: a value is out of its range, or both budget and threshold are given; lists all problems.
    """

    signal: str = DEFAULT_SIGNAL
    action: Action = "drop"
    budget: int | float | None = None
    threshold: float | None = None
    min_confidence: float | None = None
    review_band: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        problems = []
        if self.action not in ACTIONS:
            problems.append(f"action must be one of {', '.join(ACTIONS)}; got {self.action!r}")
        if self.budget is not None and self.threshold is not None:
            problems.append("give a budget or a threshold, not both")
        if isinstance(self.budget, bool) or (self.budget is not None and not _is_budget(self.budget)):
            problems.append(f"budget must be a number of rows (int from 0) or a share in (0, 1); got {self.budget!r}")
        if self.threshold is not None and not np.isfinite(self.threshold):
            problems.append(f"threshold must be finite, got {self.threshold}")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            problems.append(f"min_confidence must be a probability, got {self.min_confidence}")
        if not (np.isfinite(self.review_band) and self.review_band >= 0):
            problems.append(f"review_band must be at least 0, got {self.review_band}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def version(self) -> str:
        """Names the code and every setting: two runs with equal versions decide alike on equal scores."""
        settings = json.dumps(asdict(self), sort_keys=True).encode()
        return f"mislabel-{VERSION}-{hashlib.sha256(settings).hexdigest()[:8]}"

    @property
    def confidence(self) -> float:
        """The probability a suggestion needs for the action to be taken without a person."""
        if self.min_confidence is not None:
            return self.min_confidence
        return RELABEL_CONFIDENCE if self.action == "relabel" else 0.0


def decide(
    example_ids: Sequence[str] | Sequence[int],
    labels: np.ndarray,
    classes: Sequence[str] | Sequence[int],
    scores: np.ndarray,
    probabilities: np.ndarray,
    rule: DecisionRule,
    *,
    proponent_labels: np.ndarray | None = None,
) -> pl.DataFrame:
    """Decide on every training row. A score that is the same for all rows tells nothing, and flags none.

    Args:
        example_ids: N ids, in index order.
        labels: int64 [N], codes.
        classes: the K labels as the user wrote them; code = position.
        scores: float [N], higher = more likely mislabelled. Equal scores are told apart by the probability of the label.
        probabilities: float [N, K] of ``loo_probabilities``.
        rule: which rows to flag and what to do with them.
        proponent_labels: int64 [N, k], for the reason: codes of the other rows that speak most for the suggested label of
            row i being right; -1 where fewer than k rows speak for it at all.

    Returns:
        N rows in index order: ``example_id``, ``label``, ``suggested_label`` (the likeliest other label of a row that is
        dropped, relabelled or reviewed, else null), ``score``, ``threshold`` (score of the last flagged row; null when
        none is), ``decision`` (keep, drop, relabel, review), ``reason``, ``rule_version``.

    Raises:
        ValueError: shapes differ, a code is out of range or a number is not finite.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    _check(example_ids, labels, classes, scores, probabilities, proponent_labels)
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    others = np.array(probabilities, dtype=np.float64)
    others[rows, labels] = -np.inf
    suggested = others.argmax(axis=1)
    confidence = others[rows, suggested]

    order = np.lexsort((rows, own, -scores))  # by score, then by the least likely label, then by position
    flagged = _flag_count(rule, scores, probabilities, labels)
    band = order[flagged : flagged + round(rule.review_band * flagged)]
    decision = np.full(len(labels), "keep", dtype=object)
    decision[order[:flagged]] = rule.action
    unsure = (decision == rule.action) & (confidence < rule.confidence)
    decision[unsure] = "review"
    decision[band] = "review"
    acted = decision != "keep"
    notes = np.full(len(labels), "", dtype=object)
    if rule.action == "review":  # a person looks at it anyway
        notes[unsure] = f"; the suggestion is unsure (below {rule.confidence:.2f})"
    else:
        notes[unsure] = f"; too unsure to {rule.action} without a look (needs {rule.confidence:.2f})"
    notes[band] = "; just below the cut"

    names = [str(label) for label in classes]
    reasons = []
    for row in rows:
        label, other = names[labels[row]], names[suggested[row]]
        if not acted[row]:
            reasons.append(_reason_to_keep(label, other, own[row], confidence[row], flagged))
            continue
        reason = _disagreement(label, other, own[row], confidence[row])
        if proponent_labels is not None:
            reason += f"; {_support(other, proponent_labels[row], suggested[row])}"
        reasons.append(reason + notes[row])
    values = pl.Series("label", list(classes))
    return pl.DataFrame(
        {
            "example_id": pl.Series(list(example_ids)),
            "label": values.gather(labels),
            "suggested_label": pl.select(
                pl.when(pl.Series(acted)).then(values.gather(suggested)).otherwise(None)
            ).to_series(),
            "score": scores,
            "threshold": pl.Series([scores[order[flagged - 1]] if flagged else None] * len(labels), dtype=pl.Float64),
            "decision": pl.Series(decision.tolist(), dtype=pl.String),
            "reason": pl.Series(reasons, dtype=pl.String),
            "rule_version": pl.Series([rule.version] * len(labels), dtype=pl.String),
        }
    )


def _flag_count(rule: DecisionRule, scores: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> int:
    """How many rows, from the highest score down, the rule flags."""
    if len(scores) and np.ptp(scores) == 0:
        logger.warning("the signal %s is the same for every row: no row is flagged", rule.signal)
        return 0
    if rule.threshold is not None:
        return int((scores >= rule.threshold).sum())
    if rule.budget is None:
        return estimate_errors(probabilities, labels)
    wanted = rule.budget if isinstance(rule.budget, int) else round(rule.budget * len(scores))
    return min(int(wanted), len(scores))


def _disagreement(label: str, other: str, own: float, confidence: float) -> str:
    if confidence >= own:
        return f"labelled {label}, the model without this row says {other} at {_probability(confidence)}"
    return (
        f"labelled {label}, the model without this row says {label} at {_probability(own)}, "
        f"then {other} at {_probability(confidence)}"
    )


def _support(other: str, proponents: np.ndarray, suggested: int) -> str:
    """How many of the rows that speak for the label ``other`` (codes [k], -1 for none) carry it themselves."""
    known = int((proponents >= 0).sum())
    if not known:
        return f"no other row supports {other}"
    agree = int((proponents == suggested).sum())
    return f"{agree} of the {known} strongest supporters of {other} are labelled {other}"


def _reason_to_keep(label: str, other: str, own: float, confidence: float, flagged: int) -> str:
    if own >= confidence:
        return f"labelled {label}, the model without this row agrees at {_probability(own)}"
    why = f"not among the {flagged} highest scores" if flagged else "no row is flagged"
    return f"{_disagreement(label, other, own, confidence)}, but {why}"


def _probability(value: float) -> str:
    if value < 0.005:
        return "under 0.01"
    return "over 0.99" if value > 0.995 else f"{value:.2f}"


def _is_budget(budget: int | float) -> bool:
    return budget >= 0 if isinstance(budget, int) else 0 < budget < 1


def _check(
    example_ids: Sequence[str] | Sequence[int],
    labels: np.ndarray,
    classes: Sequence[str] | Sequence[int],
    scores: np.ndarray,
    probabilities: np.ndarray,
    proponent_labels: np.ndarray | None,
) -> None:
    rows = len(labels)
    check_labels(labels, len(classes), rows=rows)
    if len(example_ids) != rows:
        raise ValueError(f"example_ids: expected {rows}, one a row, got {len(example_ids)}")
    if scores.shape != (rows,):
        raise ValueError(f"scores: expected shape [{rows}], got {list(scores.shape)}")
    if probabilities.shape != (rows, len(classes)):
        raise ValueError(f"probabilities: expected shape [{rows}, {len(classes)}], got {list(probabilities.shape)}")
    require_finite(scores, "scores")
    require_finite(probabilities, "probabilities")
    if proponent_labels is not None and (proponent_labels.ndim != 2 or len(proponent_labels) != rows):
        raise ValueError(f"proponent_labels: expected shape [{rows}, k], got {list(proponent_labels.shape)}")
