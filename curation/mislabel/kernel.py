"""Kernel leave-one-out: what the model's own features say of a row's label when that row is left out, in closed form.

Axes: N training rows, L layers, d_l inputs of a layer, M landmarks, D columns of the feature map, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from curation.mislabel.checks import check_labels, require_finite

KERNELS = ("rbf", "linear")
BLOCK_ROWS = 4096
# A row that alone decides its own prediction has leverage 1, and nothing is left of it without itself. Dividing by less
# than this would return rounding errors, so its prediction shrinks to about zero for every class instead.
SMALLEST_REST = 1e-6
# Added to the landmarks' kernel, whose diagonal is 1: repeated landmarks make it singular.
JITTER = 1e-6

FeatureMap = Callable[[slice], Tensor]


def kernel_loo(
    inputs: np.ndarray | Sequence[np.ndarray],
    labels: np.ndarray,
    num_classes: int,
    *,
    kernel: str = "rbf",
    damping: float = 0.5,
    landmarks: int = 512,
    seed: int = 0,
) -> np.ndarray:
    """Leave-one-out predictions of a ridge regression of the one-hot labels onto features, exact and without refits.

    With H the features and a column of ones, lam = damping * mean squared norm of a row of H, A = (H^T H + lam I)^-1,
    f = H A H^T Y and the leverage h_i = H_i^T A H_i, leaving row i out gives f_-i = (f_i - h_i y_i) / (1 - h_i).

    ``linear``: the features are the inputs of the layers, each brought to total variance 1 (so that every layer counts
    the same), side by side. ``rbf``: those of the kernel exp(-d / median d) with d the squared distance of these rows,
    restricted to the span of M random rows (Nystroem); exactly the kernel's own when M >= N. It finds errors among rows
    that no straight boundary separates. Labels play no part in the features, so each f_-i knows nothing of its own label
    beyond what the trained model memorised of it.

    float64, streamed over blocks of rows: O(N D^2) time and O(D^2) memory beyond the result.

    Args:
        inputs: float [N, d_l], one array a layer, or a single one.
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
    layers = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
    _check(layers, labels, num_classes, kernel, damping, landmarks)
    rows = len(labels)
    scales = [_scale(layer) for layer in layers]

    def side_by_side(index: slice | np.ndarray) -> Tensor:
        parts = [
            torch.from_numpy((layer[index] - centre) / spread)
            for layer, (centre, spread) in zip(layers, scales, strict=True)
        ]
        return torch.cat(parts, dim=1)

    features: FeatureMap = side_by_side if kernel == "linear" else _rbf_features(side_by_side, rows, landmarks, seed)

    def with_ones(block: slice) -> Tensor:
        mapped = features(block)
        return torch.cat([mapped, torch.ones(len(mapped), 1, dtype=torch.float64)], dim=1)  # [B, D + 1]

    return _leave_one_out(with_ones, torch.from_numpy(labels), num_classes, damping)


def _leave_one_out(features: FeatureMap, labels: Tensor, num_classes: int, damping: float) -> np.ndarray:
    """Two passes over the rows: the normal equations, then prediction and leverage of each row."""
    gram, moment = torch.zeros(()), torch.zeros(())
    for block in blocks(len(labels)):
        rows = features(block)
        targets = torch.nn.functional.one_hot(labels[block], num_classes).double()
        gram = gram + rows.T @ rows  # [D, B] @ [B, D]
        moment = moment + rows.T @ targets  # [D, B] @ [B, K]
    gram.diagonal().add_(damping * gram.diagonal().sum() / len(labels))
    factor = torch.linalg.cholesky(gram)  # gram = factor factor^T
    weights = torch.cholesky_solve(moment, factor)  # [D, K]
    predictions = np.empty((len(labels), num_classes))
    for block in blocks(len(labels)):
        rows = features(block)
        targets = torch.nn.functional.one_hot(labels[block], num_classes).double()
        leverage = torch.linalg.solve_triangular(factor, rows.T, upper=False).square().sum(dim=0)[:, None]  # [B, 1]
        left_out = (rows @ weights - leverage * targets) / (1 - leverage).clamp(min=SMALLEST_REST)
        predictions[block] = left_out.numpy()
    return predictions


def _rbf_features(inputs: Callable[[slice | np.ndarray], Tensor], rows: int, landmarks: int, seed: int) -> FeatureMap:
    """The Nystroem map of the rbf kernel: its dot products are the kernel, exact between landmarks."""
    chosen = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(rows)[:landmarks])
    centres = inputs(chosen)  # [M, d]
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


def _scale(layer: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean [d] and root of the total variance of a layer's inputs; a constant layer keeps 1, and so becomes zero."""
    centre = layer.mean(axis=0, dtype=np.float64)
    square = sum(float(np.square(layer[block] - centre).sum()) for block in blocks(len(layer)))
    spread = (square / len(layer)) ** 0.5
    # Rounding leaves a constant layer a variance of about its square times the precision of a float64.
    noise = 1e-12 * float(np.abs(centre).max(initial=0.0)) * len(centre) ** 0.5
    return centre, spread if spread > noise else 1.0


def blocks(rows: int) -> Iterator[slice]:
    """Slices of at most ``BLOCK_ROWS`` that cover ``rows`` rows."""
    return (slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS))


def _check(
    layers: list[np.ndarray], labels: np.ndarray, num_classes: int, kernel: str, damping: float, landmarks: int
) -> None:
    if not layers or len(labels) < 2:
        raise ValueError(f"kernel_loo needs the inputs of a layer and 2 rows, got {len(layers)} and {len(labels)}")
    check_labels(labels, num_classes, rows=len(labels))
    for number, layer in enumerate(layers):
        if layer.ndim != 2 or len(layer) != len(labels):
            raise ValueError(f"inputs[{number}]: expected shape [{len(labels)}, d], got {list(layer.shape)}")
        require_finite(layer, f"inputs[{number}]")
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}")
    if not (np.isfinite(damping) and damping > 0):
        raise ValueError(f"damping must be positive, got {damping}")
    if landmarks < 1:
        raise ValueError(f"landmarks must be at least 1, got {landmarks}")
