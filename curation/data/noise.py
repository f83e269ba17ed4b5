"""Planting wrong labels into right ones, to measure how many of them are found again. Pure numpy.

Axes: N rows, D numbers of an input, K classes. Codes are int64 [N] in 0..K-1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

KINDS = ("uniform", "pairwise", "feature")
# The probe of feature-dependent noise solves a system of this size at most, whatever the size of the inputs.
PROBE_COLUMNS = 1024


def noise_problems(noise: Mapping[str, Any] | None) -> list[str]:
    """What is wrong with a noise option: ``{"kind": ..., "rate": ..., "seed": ...}`` (seed 0 where left out) or None."""
    if noise is None:
        return []
    if not isinstance(noise, Mapping):
        return [f"noise: expected kind, rate and seed, got {noise!r}"]
    problems = [
        f"noise: unknown key {key!r}; the keys are kind, rate, seed" for key in noise.keys() - {"kind", "rate", "seed"}
    ]
    if noise.get("kind") not in KINDS:
        problems.append(f"noise.kind must be one of {', '.join(KINDS)}; got {noise.get('kind')!r}")
    rate, seed = noise.get("rate"), noise.get("seed", 0)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        problems.append(f"noise.rate must be the fraction of training labels to change, in [0, 1); got {rate!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        problems.append(f"noise.seed must be a whole number from 0; got {seed!r}")
    return problems


def plant_noise(
    codes: np.ndarray, num_classes: int, kind: str, rate: float, seed: int = 0, inputs: np.ndarray | None = None
) -> np.ndarray:
    """Change exactly ``round(rate * N)`` labels; deterministic for a seed.

    Args:
        codes: int64 [N], right labels; left as they are.
        num_classes: K, at least 2.
        kind: ``uniform``: rows drawn evenly, each to a class drawn evenly from the K - 1 others. ``pairwise``: rows drawn
            evenly, class k to class (k + 1) mod K. ``feature``: the rows a linear probe is least sure of, to the class
            it finds likeliest after their own; the probe is a ridge regression onto the labels, of which the seed draws
            the weights of the rows (and the columns, beyond 1,024).
        rate: fraction of the rows in [0, 1).
        seed: of everything drawn.
        inputs: float [N, D], finite; what the probe of ``feature`` sees.

    Returns:
        int64 [N], the new labels.

    Raises:
        ValueError: an argument is out of its range, or ``feature`` has no inputs.
    """
    problems = noise_problems({"kind": kind, "rate": rate, "seed": seed})
    if num_classes < 2:
        problems.append(f"noise needs at least 2 classes, got {num_classes}")
    if kind == "feature" and inputs is None:
        problems.append("noise of kind feature needs the inputs")
    if problems:
        raise ValueError("; ".join(problems))
    rng = np.random.default_rng(seed)
    noisy = np.array(codes, dtype=np.int64)
    count = round(rate * len(noisy))
    if kind == "feature":
        scores = _probe(np.asarray(inputs, dtype=np.float64), noisy, num_classes, rng)  # [N, K]
        own = scores[np.arange(len(noisy)), noisy]
        scores[np.arange(len(noisy)), noisy] = -np.inf
        rows = np.argsort(own - scores.max(axis=1), kind="stable")[:count]
        noisy[rows] = scores[rows].argmax(axis=1)
        return noisy
    rows = rng.permutation(len(noisy))[:count]
    steps = rng.integers(1, num_classes, size=count) if kind == "uniform" else 1
    noisy[rows] = (noisy[rows] + steps) % num_classes
    return noisy


def _probe(inputs: np.ndarray, codes: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Scores [N, K] of a weighted ridge regression of the one-hot labels onto the standardised inputs [N, D]."""
    if inputs.shape[1] > PROBE_COLUMNS:
        inputs = inputs[:, np.sort(rng.permutation(inputs.shape[1])[:PROBE_COLUMNS])]
    deviation = inputs.std(axis=0)
    rows = (inputs - inputs.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)  # [N, D + 1]
    # Exponential weights are a smooth bootstrap: another seed gives another boundary, and no class is ever left out.
    weights = rng.exponential(size=(len(rows), 1))
    gram = rows.T @ (weights * rows)  # [D + 1, N] @ [N, D + 1]
    gram[np.diag_indices_from(gram)] += 0.01 * np.trace(gram) / len(gram)
    targets = np.eye(num_classes)[codes]  # [N, K]
    return rows @ np.linalg.solve(gram, rows.T @ (weights * targets))
