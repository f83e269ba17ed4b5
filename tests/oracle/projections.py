"""Explicit projections and rank-c truncation of per-example gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def project(gradients: Tensor, p_in: Tensor, p_out: Tensor) -> Tensor:
    """P_in^T G P_out for every example: [N, a, b], [a, d1], [b, d2] -> [N, d1, d2] float64.

    The same as (X P_in)^T (dY P_out), since G = X^T dY.
    """
    p_in, p_out = p_in.double(), p_out.double()
    return torch.stack([p_in.T @ g @ p_out for g in gradients.double()])  # [d1, a] @ [a, b] @ [b, d2]


def best_rank_c(gradients: Tensor, c: int) -> Tensor:
    """Nearest matrix of rank <= c to every G [N, a, b], by a full SVD (Eckart-Young); the same shape back."""
    truncated = []
    for g in gradients.double():
        u, s, vt = torch.linalg.svd(g, full_matrices=False)  # [a, k], [k], [k, b]
        truncated.append((u[:, :c] * s[:c]) @ vt[:c])
    return torch.stack(truncated)


def pca_basis(covariance: Tensor, d: int) -> Tensor:
    """Eigenvectors of the d largest eigenvalues as columns, largest first: [a, a] -> [a, d]; signs are arbitrary."""
    covariance = covariance.double()
    _, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # eigenvalues ascending
    return vectors.flip(1)[:, :d]
