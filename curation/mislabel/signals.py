"""Every signal of a wrong label as one column. In each of them HIGHER = MORE LIKELY MISLABELLED.

Axes: N training rows, K classes, k strongest proponents of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from curation.mislabel.checks import check_labels, require_finite
from curation.mislabel.forward import Forward
from curation.mislabel.kernel import gap, kernel_loo
from curation.mislabel.newton import loo_logits

logger = logging.getLogger(__name__)

DEFAULT_SIGNAL = "kernel_loo"
RANK_AVERAGE = "rank_average"


def signals(
    forward: Forward,
    *,
    kernel_scores: np.ndarray | None = None,
    self_influence: np.ndarray | None = None,
    proponent_labels: np.ndarray | None = None,
    proponent_scores: np.ndarray | None = None,
    trusted_influence: np.ndarray | None = None,
    average: Sequence[str] = (),
) -> pl.DataFrame:
    """One Float64 column a signal, N rows in index order, all finite.

    ``kernel_loo`` (the default of the decisions): how much more the kernel leave-one-out prediction is for the likeliest
    other class than for the label. ``loo_logits``: the same of the leave-one-out log-probabilities. ``loss``: cross entropy
    of the model at the label. ``margin``: likeliest other logit minus the label's. ``self_influence`` (given):
    g_i^T H^-1 g_i. ``proponent_votes`` (given the labels of the strongest proponents): what they give to the likeliest
    other label minus what they give to the row's own, as a share of all they give, in [-1, 1]. ``trusted_influence``
    (given): how much the row harms the trusted rows. ``rank_average``: mean over the columns named in ``average`` of
    the row's rank in [0, 1].

    Args:
        forward: of the model trained on all rows.
        kernel_scores: float [N, K] of ``kernel_loo``; computed from ``forward.inputs`` where left out.
        self_influence: float [N], any scale.
        proponent_labels: int64 [N, k], codes of the rows that speak most for row i's label being right, itself excluded.
        proponent_scores: float [N, k], their scores, positive = proponent; only positive ones vote. None: all count 1.
        trusted_influence: float [N], mean attribution to trusted queries; positive = row i helps them.
        average: columns to average the ranks of; none: no ``rank_average`` column.

    Returns:
        The columns that could be computed, in the order above.

    Raises:
        ValueError: shapes differ, a value is not finite, or ``average`` names a column that is not there.
    """
    labels, rows, classes = forward.labels, len(forward.labels), forward.logits.shape[1]
    check_labels(labels, classes, rows=len(forward.logits))
    if kernel_scores is None:
        kernel_scores = kernel_loo(forward.inputs, labels, classes)
    _check_shape(kernel_scores, "kernel_scores", (rows, classes))
    logits = np.asarray(forward.logits, dtype=np.float64)
    columns = {
        "kernel_loo": gap(kernel_scores, labels),
        "loo_logits": gap(loo_logits(forward.features, logits, labels), labels),
        "loss": _cross_entropy(logits, labels),
        "margin": gap(logits, labels),
    }
    if self_influence is not None:
        columns["self_influence"] = _check_shape(self_influence, "self_influence", (rows,))
    if proponent_labels is not None:
        columns["proponent_votes"] = proponent_votes(proponent_labels, labels, classes, proponent_scores)
    if trusted_influence is not None:
        columns["trusted_influence"] = -_check_shape(trusted_influence, "trusted_influence", (rows,))
    if average:
        columns[RANK_AVERAGE] = rank_average(columns, average)
    constant = [name for name, values in columns.items() if rows > 1 and np.ptp(values) == 0]
    if constant:
        logger.warning("the signals %s are the same for every row and tell nothing", ", ".join(constant))
    return pl.DataFrame({name: np.asarray(values, dtype=np.float64) for name, values in columns.items()})


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values [N] scaled to [0, 1], equal values sharing the mean of theirs; 0.5 where all are equal."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle = last - (counts + 1) / 2  # of positions last - count to last - 1
    return middle[inverse.reshape(-1)] / (len(values) - 1)


def rank_average(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Mean rank, float64 [N] in [0, 1], over the columns called ``names``; a constant one moves no row past another."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"no such signals to average: {', '.join(missing)}; there are {', '.join(columns)}")
    if not names:
        raise ValueError(f"name at least one signal to average; there are {', '.join(columns)}")
    total = sum((ranks(np.asarray(columns[name])) for name in names), start=np.zeros(()))
    return total / len(names)


def proponent_votes(
    proponent_labels: np.ndarray, labels: np.ndarray, num_classes: int, scores: np.ndarray | None = None
) -> np.ndarray:
    """Votes of the strongest proponents for the likeliest other label minus those for the row's own, float64 [N] in [-1, 1].

    Args:
        proponent_labels: int64 [N, k], codes.
        labels: int64 [N], codes.
        num_classes: K.
        scores: float [N, k], weight of each vote; opponents (below zero) have none. None: all count 1. A row without any
            weight gets 0.

    Raises:
        ValueError: shapes differ, a code is out of range or a score is not finite.
    """
    proponent_labels = np.asarray(proponent_labels)
    if proponent_labels.ndim != 2 or len(proponent_labels) != len(labels):
        raise ValueError(f"proponent_labels: expected shape [{len(labels)}, k], got {list(proponent_labels.shape)}")
    check_labels(proponent_labels.reshape(-1), num_classes, rows=proponent_labels.size)
    weights = np.ones(proponent_labels.shape)
    if scores is not None:
        weights = _check_shape(scores, "proponent_scores", proponent_labels.shape).clip(min=0)
    votes = np.zeros((len(labels), num_classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], proponent_labels), weights)
    total = votes.sum(axis=1)
    return gap(votes, labels) / np.where(total > 0, total, 1.0)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss: np.ndarray = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return loss


def _check_shape(values: np.ndarray, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """``values`` as float64, ValueError unless of ``shape`` and finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{what}: expected shape {list(shape)}, got {list(array.shape)}")
    require_finite(array, what)
    return array
