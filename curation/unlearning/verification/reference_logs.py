"""Logs of a retrained model, ours or open-unlearning's (``TOFU_EVAL.json``), as the reference of a panel.

Axes: n records to be forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.unlearning.verification.intervals import ForgetQuality, forget_quality
from curation.unlearning.verification.membership import privleak
from curation.unlearning.verification.panel import PRIVLEAK_ATTACK, Panel


@dataclass(frozen=True)
class ReferenceLogs:
    """What such a log tells of the records.

    Attributes:
        truth_ratios: index of a record -> its truth ratio; empty where the log has none.
        auc: of the attack that PrivLeak is made of; None where the log has none.
    """

    truth_ratios: dict[str, float]
    auc: float | None


def read_reference_logs(path: str | Path) -> ReferenceLogs:
    """Read a log.

    Raises:
        ValueError: the file is no JSON, or has neither truth ratios nor the attack's AUC.
    """
    try:
        logged = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON log such as TOFU_EVAL.json: {error}") from error
    if not isinstance(logged, Mapping):
        raise ValueError(f"{path}: expected a JSON object of metrics, got {type(logged).__name__}")
    try:
        ratios: Mapping[str, Any] = logged.get("forget_truth_ratio", {}).get("value_by_index", {})
        auc = logged.get(PRIVLEAK_ATTACK, {}).get("agg_value")
        found = ReferenceLogs(
            {str(index): float(entry["score"]) for index, entry in ratios.items()}, None if auc is None else float(auc)
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected forget_truth_ratio with a score of each index, and {PRIVLEAK_ATTACK} with agg_value, as "
            f"open-unlearning writes them: {error!r}"
        ) from error
    if not found.truth_ratios and found.auc is None:
        raise ValueError(f"{path}: has neither forget_truth_ratio nor {PRIVLEAK_ATTACK}; got {', '.join(logged)}")
    return found


def forget_quality_against(panel: Panel, logs: ReferenceLogs) -> ForgetQuality:
    """Forget quality of a model against a logged one.

    Our logs know records by their position among the training rows, open-unlearning's by that in its forget split: of those
    only the number can be compared.

    Raises:
        ValueError: one of them has no truth ratios, or they are of different records.
    """
    ours = panel.metrics.get("forget_truth_ratio", {}).get("value_by_index", {})
    if not ours or not logs.truth_ratios:
        raise ValueError("forget quality: the panel or the reference log has no truth ratios")
    counted = {str(number) for number in range(len(ours))}  # open-unlearning counts within its forget split
    if logs.truth_ratios.keys() not in (ours.keys(), counted):
        raise ValueError(
            f"forget quality: the reference log is of other records: {len(ours)} here, {len(logs.truth_ratios)} there, "
            f"{len(ours.keys() & logs.truth_ratios.keys())} of them in both"
        )
    return forget_quality(
        np.array([entry["score"] for entry in ours.values()]), np.array(list(logs.truth_ratios.values()))
    )


def privleak_against(panel: Panel, logs: ReferenceLogs) -> float:
    """PrivLeak of a model against a logged one, in percent: 0 as it, below it under-, above it over-unlearned.

    Raises:
        ValueError: one of them has no such attack, or the logged AUC is 1.
    """
    if logs.auc is None or PRIVLEAK_ATTACK not in panel.attacks:
        raise ValueError(f"privleak: the panel or the reference log has no {PRIVLEAK_ATTACK}")
    return privleak(panel.attacks[PRIVLEAK_ATTACK].auc.point, logs.auc)
