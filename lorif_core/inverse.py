"""One layer's damped inverse curvature (V S^2 V^T + lambda I)^-1, in the form that suits its shape.

Axes: N training examples, D = d1 d2 a layer's flattened gradient, r curvature rank, Q queries, K = G G^T [N, N].

V [D, r] are orthonormal directions in the span of the stored gradients G [N, D], S^2 [r] the stored gradients' squared
lengths along them, lambda > 0 the damping. With D <= N, V itself is kept and queries are preconditioned. With N < D the
inverse is never applied to a gradient: a score needs nothing but the dot products G g, since V = G^T M and G V = C are
matrices of N rows:

    G H^-1 g = (G g - C a) / lambda + C (a / (S^2 + lambda)),   a = V^T g = M^T (G g)

Both are the split form, which does not round S^2 / (S^2 + lambda) to one. With N < D and every direction (`KernelInverse`)
there is no V:

    G H^-1 g = (K + lambda I)^-1 (G g),   G H^-1 G^T = (K + lambda I)^-1 K = I - lambda (K + lambda I)^-1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_NUMBERS = 2**22
"""Doubles of V converted at once: 32 MB."""


@dataclass(frozen=True)
class PrimalInverse:
    """V [D, r] and S^2 [r], float32."""

    vectors: Tensor
    values: Tensor
    damping: float
    trace: float | None = None
    """Of G^T G, where it was just computed; kept in the manifest (`lorif_core.kept`)."""

    def precondition(self, gradients: Tensor) -> Tensor:
        """H^-1 g for the rows of [Q, D]; float64 inside, where g - V V^T g cancels, float32 out.

        V is converted some directions at a time: a float64 copy of it can be larger than all that is held otherwise.
        """
        g, size = gradients.double(), self.vectors.shape[0]
        complete = (
            size == self.vectors.shape[1]
        )  # nothing is outside, and rounding errors are not to be divided by lambda
        outside, inside = g.clone(), torch.zeros_like(g)
        step = max(1, BLOCK_NUMBERS // size)
        for v, values in zip(self.vectors.split(step, 1), self.values.split(step), strict=True):
            v = v.double()
            along = g @ v  # [Q, D] @ [D, r'] -> [Q, r']
            inside.addmm_(along / (values.double() + self.damping), v.T)  # [Q, r'] @ [r', D] -> [Q, D]
            if not complete:
                outside.addmm_(along, v.T, alpha=-1)
        return inside.float() if complete else inside.add_(outside, alpha=1 / self.damping).float()

    def quadratic(self, gradients: Tensor) -> Tensor:
        """g^T H^-1 g [Q] for the rows of [Q, D]; the part outside V by its residual, which does not cancel."""
        along = gradients @ self.vectors  # [Q, D] @ [D, r] -> [Q, r]
        inside = (along.square() / (self.values + self.damping)).sum(1)
        if self.vectors.shape[0] == self.vectors.shape[1]:
            return inside
        return (gradients - along @ self.vectors.T).square().sum(1) / self.damping + inside


@dataclass(frozen=True)
class DualInverse:
    """M [N, r] with V = G^T M, C = G V [N, r], S^2 [r]; float64 for few rows, else float32.

    `outside` [N] are the squared lengths of the stored gradients outside V, all zero where V spans them all.
    """

    weights: Tensor
    coordinates: Tensor
    values: Tensor
    outside: Tensor
    damping: float

    @property
    def dtype(self) -> torch.dtype:
        """Of dot products precise enough."""
        return self.weights.dtype

    def scores(self, products: Tensor) -> Tensor:
        """G H^-1 g [Q, N] from the dot products G g [Q, N]; float64 inside, float32 out."""
        y, values = products.double(), self.values.double() + self.damping
        along, coordinates = y @ self.weights.double(), self.coordinates.double()  # [Q, N] @ [N, r] -> [Q, r]
        inside = (along / values) @ coordinates.T  # [Q, r] @ [r, N] -> [Q, N]
        if not bool(self.outside.any()):
            return inside.float()
        return ((y - along @ coordinates.T) / self.damping + inside).float()

    def self_influence(self) -> Tensor:
        """g_i^T H^-1 g_i [N] of the stored examples."""
        inside = self.coordinates.double().square()  # [N, r]
        return (self.outside.double() / self.damping + (inside / (self.values.double() + self.damping)).sum(1)).float()


@dataclass(frozen=True)
class KernelInverse:
    """H = G^T G + lambda I, every direction of it: the Cholesky factor [N, N], float64, of K + lambda I."""

    factor: Tensor
    damping: float
    dtype: torch.dtype = torch.float64
    """Of dot products precise enough."""

    @classmethod
    def of(cls, kernel: Tensor, damping: float, dtype: torch.dtype = torch.float64) -> KernelInverse:
        """From K [N, N], float64, which is overwritten.

        Args:
            kernel: K.
            damping: lambda.
            dtype: of the dot products K was made of.

        Raises:
            ValueError: lambda is less than the rounding errors of K, so that H cannot be inverted.
        """
        mean = float(kernel.diagonal().mean())
        kernel.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(kernel)
        if int(failed):
            raise ValueError(
                f"a damping of {damping:.3g} is lost in the rounding of gradients whose mean squared norm is {mean:.3g}: "
                "raise damping, or name a curvature_rank below the number of examples"
            )
        return cls(factor, damping, dtype)

    def scores(self, products: Tensor) -> Tensor:
        """G H^-1 g [Q, N] from the dot products G g [Q, N]; float64 inside, float32 out."""
        solved: Tensor = torch.cholesky_solve(products.double().T, self.factor)  # [N, N] \ [N, Q] -> [N, Q]
        return solved.T.float()

    def self_influence(self) -> Tensor:
        """g_i^T H^-1 g_i [N] of the stored examples; float64 inside, where 1 - lambda / (lambda + |g|^2) cancels."""
        own = torch.cholesky_inverse(self.factor).diagonal()
        return (1 - self.damping * own).clamp_min(0).float()


FromProducts = DualInverse | KernelInverse
"""Turns the dot products of a query and all rows into scores."""
LayerInverse = PrimalInverse | FromProducts


def identities(sizes: dict[str, int], device: torch.device) -> dict[str, LayerInverse]:
    """H = I for layers of D = `sizes`: scores are plain dot products."""
    none = torch.zeros(0, device=device)
    return {name: PrimalInverse(torch.zeros(size, 0, device=device), none, 1.0) for name, size in sizes.items()}


def to_tensors(inverses: dict[str, LayerInverse]) -> dict[str, Tensor]:
    """Everything but the dampings, under `<field>.<layer>`, on the CPU; nothing of a `KernelInverse`, made anew in no time."""
    return {
        f"{field}.{name}": value.cpu()
        for name, inverse in inverses.items()
        for field, value in vars(inverse).items()
        if isinstance(value, Tensor) and not isinstance(inverse, KernelInverse)
    }


def from_tensors(
    tensors: dict[str, Tensor], damping: dict[str, float], device: torch.device
) -> dict[str, LayerInverse]:
    """The inverse of `to_tensors`, with each layer's damping: of the layers that it has tensors of."""

    def read(name: str) -> LayerInverse:
        kind = PrimalInverse if f"vectors.{name}" in tensors else DualInverse
        found: dict[str, Any] = {
            field: tensors[f"{field}.{name}"].to(device)
            for field in kind.__dataclass_fields__
            if f"{field}.{name}" in tensors
        }
        return kind(**found, damping=damping[name])

    return {name: read(name) for name in damping if f"values.{name}" in tensors}
