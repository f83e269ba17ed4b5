"""Membership attacks: can records that were unlearned be told from ones that the model never saw?

Axes: n records unlearned, m held out, W_i tokens of a record.

Every score is like a loss: lower = more like a row of the training data. AUC is the chance that a held-out row scores above
an unlearned one: 1 = still remembered, 0.5 = not to be told apart, below 0.5 = over-unlearned. Published attacks: LOSS,
ZLIB (arXiv 2012.07805), Min-K (2310.16789), Min-K++ (2404.02936), and the difference to a reference model.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.unlearning.verification.intervals import Estimate, bootstrap
from curation.unlearning.verification.scan import Scan

LOWEST = 0.4
"""Share of a row's tokens, the least likely ones, that Min-K and Min-K++ look at."""
FALSE_POSITIVES = 0.01
LEAST_STD = 1e-6
"""Where a model is certain of a token, Min-K++ divides by this."""


def min_k(scanned: Scan, share: float = LOWEST) -> np.ndarray:
    """-mean of the lowest log-probabilities of each row [n]."""
    return np.array([-_lowest(row, share) for row in scanned.log_p])


def min_k_plus_plus(scanned: Scan, share: float = LOWEST) -> np.ndarray:
    """The same of log-probabilities standardised by the model's own at each token [n]."""
    rows = zip(scanned.log_p, scanned.mean, scanned.std, strict=True)
    return np.array([-_lowest((log_p - mean) / np.maximum(std, LEAST_STD), share) for log_p, mean, std in rows])


def zlib_ratio(scanned: Scan, texts: Sequence[str]) -> np.ndarray:
    """Loss a token over the compressed size of the text in bytes [n]: dull texts are likely without being remembered."""
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts])
    ratio: np.ndarray = scanned.losses / sizes
    return ratio


def attack_scores(scanned: Scan, texts: Sequence[str] | None, reference: Scan | None = None) -> dict[str, np.ndarray]:
    """Every attack's score of each row [n], under open-unlearning's names; without texts there is no ZLIB."""
    found = {
        "mia_loss": scanned.losses,
        "mia_min_k": min_k(scanned),
        "mia_min_k_plus_plus": min_k_plus_plus(scanned),
    }
    if texts is not None:
        found["mia_zlib"] = zlib_ratio(scanned, texts)
    if reference is not None:
        found["mia_reference"] = scanned.losses - reference.losses
    return found


@dataclass(frozen=True)
class Attack:
    """How well an attack tells unlearned rows from held-out ones.

    Attributes:
        auc: 0.5 = not at all.
        tpr: share of unlearned rows found where 1 % of the held-out ones are taken for them.
        null_error: standard error of an AUC of two samples of this size that are alike.
    """

    auc: Estimate
    tpr: Estimate
    null_error: float


def attack(unlearned: np.ndarray, held_out: np.ndarray, seed: int = 0) -> Attack:
    """Judge an attack by its scores of unlearned rows [n] and held-out ones [m]; intervals by bootstrap."""
    n, m = len(unlearned), len(held_out)
    null = ((n + m + 1) / (12 * n * m)) ** 0.5
    return Attack(bootstrap(auc, [unlearned, held_out], seed), bootstrap(tpr, [unlearned, held_out], seed), null)


def auc(unlearned: np.ndarray, held_out: np.ndarray) -> float:
    """Chance that a held-out row scores above an unlearned one, ties half."""
    ordered = np.sort(unlearned)
    below, up_to = (np.searchsorted(ordered, held_out, side) for side in ("left", "right"))  # [m]
    return float((below + up_to).mean() / (2 * len(unlearned)))


def tpr(unlearned: np.ndarray, held_out: np.ndarray) -> float:
    """Share of unlearned rows that score below all but `FALSE_POSITIVES` of the held-out ones."""
    allowed = int(FALSE_POSITIVES * len(held_out))
    threshold = np.partition(held_out, allowed)[allowed]
    return float((unlearned < threshold).mean())


def privleak(auc_unlearned: float, auc_retrained: float = 0.5) -> float:
    """((1 - AUC) - (1 - AUC_ref)) / (1 - AUC_ref) in percent: 0 as retrained, below under-, above over-unlearned.

    Raises:
        ValueError: the retrained model's AUC is 1: nothing can be compared with it.
    """
    if auc_retrained >= 1:
        raise ValueError("privleak: the retrained model's AUC is 1, so it is no reference: did it see the records?")
    return 100 * ((1 - auc_unlearned) - (1 - auc_retrained)) / (1 - auc_retrained)


def _lowest(values: np.ndarray, share: float) -> float:
    count = max(1, int(share * len(values)))
    return float(np.sort(values)[:count].mean())
