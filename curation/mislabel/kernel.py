"""Kernel leave-one-out: what a model's own features say of a row's label when that row is left out, in closed form.

Axes: N training rows, B rows of a block, d inputs of a layer, M landmarks, C columns of bags, D columns of the feature
map, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from curation.mislabel.bags import TokenBags, bag_loo
from curation.mislabel.checks import check_labels, require_finite

logger = logging.getLogger(__name__)

KERNELS = ("rbf", "linear")
BLOCK_ROWS = 4096
# The features of up to this many rows are kept between the two passes (34 MB at 256 landmarks), of more made twice.
REMEMBERED_ROWS = 16384
# Bags of up to this many rows are solved as one system of that size (4,096: 0.2 GB); of more, in the commonest ids.
EXACT_BAG_ROWS = 4096
BAG_COLUMNS = 2048
# A row that alone decides its own prediction has leverage 1, and nothing is left of it without itself. Dividing by less
# than this would return rounding errors, so its prediction shrinks to about zero for every class instead.
SMALLEST_REST = 1e-6
# Added to the landmarks' kernel, whose diagonal is 1: repeated landmarks make it singular.
JITTER = 1e-6

Layer = np.ndarray | TokenBags
FeatureMap = Callable[[slice], Tensor]


def kernel_loo(
    inputs: Layer | Sequence[Layer],
    labels: np.ndarray,
    num_classes: int,
    *,
    kernel: str = "rbf",
    damping: float = 1.0,
    landmarks: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """Leave-one-out predictions of ridge regressions of the one-hot labels onto layers' inputs, exact and without refits.

    For each layer, with H its features and a column of ones, lam = damping * mean squared norm of a row of H,
    A = (H^T H + lam I)^-1, f = H A H^T Y and the leverage h_i = H_i^T A H_i, leaving row i out gives
    f_-i = (f_i - h_i y_i) / (1 - h_i). The features do not depend on the labels, so f_-i knows nothing of its own label
    beyond what the trained model memorised of it.

    Features: the layer's inputs, centred and brought to total variance 1 (``linear``), or those of the kernel
    exp(-d / median d), d their squared distance, in the span of M random rows (``rbf``, Nystroem; the whole kernel when
    M >= N). ``rbf`` finds errors among classes that no straight boundary separates. Bags are always ``linear``.

    Several layers: the mean of their predictions, each weighted by the inverse of its mean absolute gap between the label
    and the likeliest other class. A layer that memorised labels is sure of every row; so it counts no more than the ones
    before it, which could not memorise as much. A layer whose inputs are the same for all rows is left out.

    float64; O(N D^2) time and O(D^2) memory beyond the result. Bags of up to ``EXACT_BAG_ROWS`` rows: float32 (``bag_loo``),
    O(N^3) and O(N^2), all their ids; of more rows, their ``BAG_COLUMNS`` commonest ids alone.

    Args:
        inputs: one layer or several: float [N, d], or ``TokenBags`` of N rows.
        labels: int64 [N], codes.
        num_classes: K.
        kernel: ``"rbf"`` or ``"linear"``.
        damping: lam as a multiple of the mean squared norm; positive.
        landmarks: M.
        seed: of the choice of the landmarks.

    Returns:
        float64 [N, K], f_-i. HIGHER = row i looks more like that class to a model that never saw its label.

    Raises:
        ValueError: an argument is out of its range, or the inputs are not finite or not N rows each.
    """
    layers: list[Layer] = [inputs] if isinstance(inputs, np.ndarray | TokenBags) else list(inputs)
    _check(layers, labels, num_classes, kernel, damping, landmarks)
    targets = functional.one_hot(torch.from_numpy(np.asarray(labels, dtype=np.int64)), num_classes).double()
    total, weight = np.zeros((len(labels), num_classes)), 0.0
    for layer in layers:
        if isinstance(layer, TokenBags) and len(layer) <= EXACT_BAG_ROWS:
            predictions = bag_loo(layer, targets, damping)
        else:
            features = _standardised(layer)
            if features is not None and kernel == "rbf" and not isinstance(layer, TokenBags):
                features = _rbf_features(features, len(labels), landmarks, seed)
            predictions = None if features is None else _leave_one_out(features, targets, damping)
        if predictions is not None:
            share = 1.0 / max(float(np.abs(gap(predictions, labels)).mean()), 1e-12)
            total += share * predictions
            weight += share
    if weight == 0.0:
        logger.warning("every layer's inputs are the same for all rows: only the frequencies of the labels are left")
        return _leave_one_out(lambda block: torch.zeros(block.stop - block.start, 0).double(), targets, damping)
    return total / weight


def gap(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Largest score of another class minus that of the label, float64 [N], of scores [N, K]; above 0 = they disagree."""
    rows = np.arange(len(labels))
    others = np.array(scores, dtype=np.float64)
    others[rows, labels] = -np.inf
    difference: np.ndarray = others.max(axis=1) - scores[rows, labels]
    return difference


def blocks(rows: int) -> Iterator[slice]:
    """Slices of at most ``BLOCK_ROWS`` that cover ``rows`` rows."""
    return (slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS))


def _leave_one_out(features: FeatureMap, targets: Tensor, damping: float) -> np.ndarray:
    """Two passes over the rows: the normal equations, then prediction and leverage of each row."""
    remembered: dict[int, Tensor] = {}

    def with_ones(block: slice) -> Tensor:
        if block.start in remembered:
            return remembered[block.start]
        mapped = features(block)
        rows = torch.cat([mapped, torch.ones(len(mapped), 1, dtype=torch.float64)], dim=1)  # [B, D]
        if len(targets) <= REMEMBERED_ROWS:
            remembered[block.start] = rows
        return rows

    gram, moment = torch.zeros(()), torch.zeros(())
    for block in blocks(len(targets)):
        rows = with_ones(block)
        gram = gram + rows.T @ rows  # [D, B] @ [B, D]
        moment = moment + rows.T @ targets[block]  # [D, B] @ [B, K]
    gram.diagonal().add_(damping * gram.diagonal().sum() / len(targets))
    factor = torch.linalg.cholesky(gram)  # gram = factor factor^T
    weights = torch.cholesky_solve(moment, factor)  # [D, K]
    predictions = np.empty(targets.shape)
    for block in blocks(len(targets)):
        rows = with_ones(block)
        leverage = torch.linalg.solve_triangular(factor, rows.T, upper=False).square().sum(dim=0)[:, None]  # [B, 1]
        left_out = (rows @ weights - leverage * targets[block]) / (1 - leverage).clamp(min=SMALLEST_REST)
        predictions[block] = left_out.numpy()
    return predictions


def _standardised(layer: Layer) -> FeatureMap | None:
    """A layer's inputs, centred and over the root of their total variance, by blocks [B, d]; None where it has none."""
    columns = min(BAG_COLUMNS, layer.width) if isinstance(layer, TokenBags) else layer.shape[1]

    def raw(block: slice) -> Tensor:
        if isinstance(layer, TokenBags):
            return layer.dense(block, columns)
        return torch.from_numpy(np.asarray(layer[block], dtype=np.float64))

    centre = sum((raw(block).sum(dim=0) for block in blocks(len(layer))), start=torch.zeros(columns).double()) / len(
        layer
    )
    variance = sum(float((raw(block) - centre).square().sum()) for block in blocks(len(layer))) / len(layer)
    # Rounding leaves a constant layer a variance of about its square times that of a float64.
    if variance <= 1e-24 * max(float(centre.square().sum()), 1e-200):
        return None
    return lambda block: (raw(block) - centre) / variance**0.5


def _rbf_features(inputs: FeatureMap, rows: int, landmarks: int, seed: int) -> FeatureMap:
    """The Nystroem map of the rbf kernel: its dot products are the kernel, exact between landmarks."""
    chosen = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(rows)[:landmarks])
    parts = [
        inputs(block)[chosen[(chosen >= block.start) & (chosen < block.stop)] - block.start] for block in blocks(rows)
    ]
    centres = torch.cat(parts)  # [M, d]
    distances = _squared_distances(centres, centres)
    bandwidth = float(distances[~torch.eye(len(centres), dtype=torch.bool)].median()) if len(centres) > 1 else 0.0
    bandwidth = bandwidth or float(distances.mean()) or 1.0  # more than half of the rows may be copies, or all
    own = torch.exp(-distances / bandwidth)
    own.diagonal().add_(JITTER)
    factor = torch.linalg.cholesky(own)

    def mapped(block: slice) -> Tensor:
        near = torch.exp(-_squared_distances(centres, inputs(block)) / bandwidth)  # [M, B]
        rows_of_map: Tensor = torch.linalg.solve_triangular(factor, near, upper=False).T  # [B, M]
        return rows_of_map

    return mapped


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared Euclidean distances [A, B] of rows [A, d] and [B, d], never negative."""
    norms = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)[None, :]
    return (norms - 2 * left @ right.T).clamp(min=0)


def _check(
    layers: list[Layer], labels: np.ndarray, num_classes: int, kernel: str, damping: float, landmarks: int
) -> None:
    if not layers or len(labels) < 2:
        raise ValueError(f"kernel_loo needs the inputs of a layer and 2 rows, got {len(layers)} and {len(labels)}")
    check_labels(labels, num_classes, rows=len(labels))
    for number, layer in enumerate(layers):
        if len(layer) != len(labels) or (isinstance(layer, np.ndarray) and layer.ndim != 2):
            shape = [len(layer)] if isinstance(layer, TokenBags) else list(layer.shape)
            raise ValueError(f"inputs[{number}]: expected shape [{len(labels)}, d], got {shape}")
        if isinstance(layer, np.ndarray):
            require_finite(layer, f"inputs[{number}]")
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}")
    if not (np.isfinite(damping) and damping > 0):
        raise ValueError(f"damping must be positive, got {damping}")
    if landmarks < 1:
        raise ValueError(f"landmarks must be at least 1, got {landmarks}")
