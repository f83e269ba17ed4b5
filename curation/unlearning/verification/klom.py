"""KLOM: how far the margins of unlearned models lie from those of models that never saw the records (arXiv 2410.23232).

Axes: U unlearned models, R retrained ones, n rows.

A margin is z_y - logsumexp of the other logits, log(p / (1 - p)). Binned as published, it needs about 100 models a side: with
5 its value is noise near 8. With few models the divergence of two normal distributions is used; either is told beside its
null, the same figure between two halves of the retrained models.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 20
CLIP = 100.0
FLOOR = 1e-5
LEAST_MODELS = 3
"""Retrained models that the figure of one unlearned model needs."""
LEAST_STD = 1e-3
"""Of margins over models: those of a row that all models agree on are not told apart any finer."""


class KLOM(NamedTuple):
    """Over the rows: the mean and the 95th percentile, and both between retrained models."""

    mean: float
    p95: float
    null_mean: float
    null_p95: float


def margins(log_p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) from log p, clipped to +-100."""
    clipped = np.minimum(log_p, -np.exp(-CLIP))
    found: np.ndarray = np.clip(clipped - np.log(-np.expm1(clipped)), -CLIP, CLIP)
    return found


def klom(unlearned: np.ndarray, retrained: np.ndarray, *, binned: bool, seed: int = 0) -> KLOM:
    """Compare margins [U, n] with margins [R, n].

    Raises:
        ValueError: fewer than 2 unlearned or 4 retrained models.
    """
    if len(unlearned) < 2 or len(retrained) < 4:
        raise ValueError(
            f"KLOM: expected at least 2 unlearned and 4 retrained models, got {len(unlearned)} and {len(retrained)}"
        )
    divergence = binned_kl if binned else gaussian_kl
    order = np.random.default_rng(seed).permutation(len(retrained))
    half = len(order) // 2
    found = divergence(unlearned, retrained)
    null = divergence(retrained[order[:half]], retrained[order[half:]])
    return KLOM(
        float(found.mean()), float(np.quantile(found, 0.95)), float(null.mean()), float(np.quantile(null, 0.95))
    )


def klom_of_one(unlearned: np.ndarray, retrained: np.ndarray) -> KLOM:
    """Compare the margins of one unlearned model [n] with margins [R, n], as normal distributions of equal spread.

    One model has no spread of its own: what is left of the divergence is (m - mean)^2 / (2 variance). Its null is the same
    figure of each retrained model against the others.

    Raises:
        ValueError: fewer than 3 retrained models.
    """
    if len(retrained) < LEAST_MODELS:
        raise ValueError(f"KLOM of one model: expected at least {LEAST_MODELS} retrained models, got {len(retrained)}")
    found = shifts(unlearned, retrained)
    null = np.array([shifts(retrained[s], np.delete(retrained, s, 0)) for s in range(len(retrained))])
    return KLOM(
        float(found.mean()), float(np.quantile(found, 0.95)), float(null.mean()), float(np.quantile(null, 0.95))
    )


def shifts(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What `klom_of_one` is the mean of: of each row [n], from margins [n] and [R, n]."""
    spread = np.maximum(others.std(0, ddof=1), LEAST_STD)
    found: np.ndarray = (one - others.mean(0)) ** 2 / (2 * spread**2)
    return found


def gaussian_kl(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """KL(N_unlearned || N_retrained) of each row [n], in nats."""
    mean_u, mean_r = unlearned.mean(0), retrained.mean(0)
    std_u, std_r = (np.maximum(x.std(0, ddof=1), LEAST_STD) for x in (unlearned, retrained))
    found: np.ndarray = np.log(std_r / std_u) + (std_u**2 + (mean_u - mean_r) ** 2) / (2 * std_r**2) - 0.5
    return found


def binned_kl(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """KL of histograms over 20 bins of the joint range, the retrained one floored, of each row [n], in nats."""
    found = []
    for u, r in zip(unlearned.T, retrained.T, strict=True):
        low, high = min(u.min(), r.min()), max(u.max(), r.max())
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        p, q = (np.histogram(x, edges)[0] / len(x) for x in (u, r))
        found.append(float(sum(a * np.log(a / max(b, FLOOR)) for a, b in zip(p, q, strict=True) if a > 0)))
    return np.array(found)
