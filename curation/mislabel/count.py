"""How many labels are wrong: confident learning's count, on leave-one-out probabilities.

Axes: N training rows, K classes.
"""

from __future__ import annotations

import numpy as np

from curation.mislabel.checks import check_labels, require_finite


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows counted by given label and by the class they confidently belong to.

    A class's threshold is the mean probability of that class among the rows that carry its label. A row confidently
    belongs to the likeliest of the classes whose threshold it reaches (Northcutt, Jiang and Chuang 2021), to none if
    it reaches none.

    Args:
        probabilities: float [N, K], of models that did not see the row's label (``loo_probabilities``).
        labels: int64 [N], codes.

    Returns:
        int64 [K, K]; rows = given label, columns = confident class.

    Raises:
        ValueError: shapes differ, a code is out of range or a probability is not finite.
    """
    confident = _confident_class(probabilities, labels)
    classes = probabilities.shape[1]
    sure = confident >= 0
    pairs = labels[sure] * classes + confident[sure]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def estimate_errors(probabilities: np.ndarray, labels: np.ndarray) -> int:
    """Estimated number of wrong labels, by confident learning's calibrated joint.

    Of the rows that carry a label and are confidently of some class, the share that belongs to another class; times all
    rows that carry the label, summed over labels. (The uncalibrated count leaves out every row that reaches no threshold,
    which is about a third of all, errors as much as others.)

    Limitations: a row of a hard class looks like an error and is counted, an error that the features repeat is not, nor are
    most of the errors at the border of two classes (12 counted of 144 on digits mislabelled where a probe is least sure).
    Where classes overlap by nature (opinions, say) the count is too high; so look at the first rows, or set a budget.

    Args:
        probabilities: float [N, K], of models that did not see the row's label (``loo_probabilities``).
        labels: int64 [N], codes.

    Returns:
        Between 0 and N.

    Raises:
        ValueError: shapes differ, a code is out of range or a probability is not finite.
    """
    joint = confident_joint(probabilities, labels)
    confident = joint.sum(axis=1)
    wrong = (confident - np.diag(joint)) / np.maximum(confident, 1)
    return round(float(wrong @ np.bincount(labels, minlength=len(joint))))


def _confident_class(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The confident class of each row, int64 [N]; -1 = none."""
    check_labels(labels, probabilities.shape[1], rows=len(probabilities))
    require_finite(probabilities, "probabilities")
    thresholds = np.full(probabilities.shape[1], np.inf)  # nothing is confidently of a class that no row carries
    for code in np.unique(labels):
        thresholds[code] = probabilities[labels == code, code].mean()
    # Probabilities that are equal but for rounding must not fall on two sides of their own mean.
    reached = np.where(probabilities >= thresholds - 1e-12, probabilities, -np.inf)
    return np.where(np.isfinite(reached).any(axis=1), reached.argmax(axis=1), -1)
