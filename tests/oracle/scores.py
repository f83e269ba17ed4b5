"""Influence scores from dense gradients, exactly, in float64.

Per layer l: G [N, D] stacks the row-major gradients, H = V_r diag(sigma_r^2) V_r^T + lambda I [D, D] with the r leading
eigenpairs of G^T G (a sum over the examples, not a mean), score(q, i) = sum over layers of g_q^T H^-1 g_i.
Positive = proponent.

``damping_rule``: "mean_norm" lambda = damping * trace(G^T G) / N; "trace" damping * trace(G^T G) / D; "paper" damping *
mean(sigma[:r + 10]^2); "absolute" damping itself. Traces and sigma are of the whole spectrum, whatever the rank.
A layer whose gradients are all zero gives no score (its relative damping would be zero).
"""

from __future__ import annotations

import torch
from torch import Tensor

OVERSAMPLING = 10
Gradients = dict[str, Tensor]


def dense_scores(
    query_grads: Gradients,
    train_grads: Gradients,
    damping: float,
    damping_rule: str,
    rank: int | None = None,
) -> Tensor:
    """Scores [Q, N] of {layer: [Q, a, b]} against {layer: [N, a, b]}; ``rank`` None keeps every direction."""
    total = None
    for layer, train in train_grads.items():
        g = flatten(train)  # [N, D]
        q = flatten(query_grads[layer])  # [Q, D]
        scores = torch.zeros(len(q), len(g), dtype=torch.float64)
        if g.any():
            hessian = layer_hessian(g, layer_damping(g, damping, damping_rule, rank), rank)  # [D, D]
            scores = q @ torch.linalg.solve(hessian, g.T)  # [Q, D] @ [D, N]
        total = scores if total is None else total + scores
    return total


def dense_self_influence(train_grads: Gradients, damping: float, damping_rule: str, rank: int | None = None) -> Tensor:
    """g_i^T H^-1 g_i summed over layers, [N]: the diagonal of the training set scored against itself."""
    return dense_scores(train_grads, train_grads, damping, damping_rule, rank).diagonal().clone()


def dual_scores(query_grads: Gradients, train_grads: Gradients, damping: float, damping_rule: str) -> Tensor:
    """The same at full rank from inner products only: K_q (K + lambda I)^-1, K = G G^T [N, N]; [Q, N]."""
    total = None
    for layer, train in train_grads.items():
        g, q = flatten(train), flatten(query_grads[layer])  # [N, D], [Q, D]
        kernel, query_kernel = g @ g.T, q @ g.T  # [N, N], [Q, N]
        scores = torch.zeros_like(query_kernel)
        if g.any():
            lam = layer_damping(g, damping, damping_rule)
            scores = torch.linalg.solve(kernel + lam * torch.eye(len(g), dtype=torch.float64), query_kernel.T).T
        total = scores if total is None else total + scores
    return total


def graddot_scores(query_grads: Gradients, train_grads: Gradients) -> Tensor:
    """Plain inner products summed over layers, [Q, N]."""
    return sum(flatten(query_grads[layer]) @ flatten(train).T for layer, train in train_grads.items())


def flatten(gradients: Tensor) -> Tensor:
    """[N, a, b] -> [N, a * b] float64, row-major."""
    return gradients.double().reshape(len(gradients), -1)


def layer_hessian(g: Tensor, lam: float, rank: int | None) -> Tensor:
    """V_r diag(sigma_r^2) V_r^T + lambda I, [D, D]."""
    identity = torch.eye(g.shape[1], dtype=torch.float64)
    if rank is None:
        return g.T @ g + lam * identity
    eigenvalues, vectors = leading_eigenpairs(g, rank)
    return vectors @ torch.diag(eigenvalues) @ vectors.T + lam * identity


def leading_eigenpairs(g: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The r largest eigenvalues [r] of G^T G (sigma^2, descending, never negative) and their eigenvectors [D, r]."""
    eigenvalues, vectors = torch.linalg.eigh(g.T @ g)  # ascending
    return eigenvalues.flip(0).clamp(min=0.0)[:rank], vectors.flip(1)[:, :rank]


def layer_damping(g: Tensor, damping: float, rule: str, rank: int | None = None) -> float:
    """lambda of one layer; G [N, D]."""
    n, d = g.shape
    trace = g.square().sum().item()  # trace(G^T G) = sum of squares
    if rule == "absolute":
        return damping
    if rule == "mean_norm":
        return damping * trace / n
    if rule == "trace":
        return damping * trace / d
    if rule == "paper":
        # the mean runs over the singular values that were computed: r + p of them, never more than G has
        computed = min(n, d) if rank is None else min(rank + OVERSAMPLING, n, d)
        return damping * leading_eigenpairs(g, computed)[0].mean().item()
    raise ValueError(f"damping rule {rule!r}: expected mean_norm, trace, paper or absolute")
