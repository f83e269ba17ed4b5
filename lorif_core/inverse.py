"""One layer's damped inverse curvature (V S^2 V^T + lambda I)^-1, in the form that suits its shape.

Axes: N training examples, D = d1 d2 a layer's flattened gradient, r curvature rank, Q queries.

V [D, r] are orthonormal directions in the span of the stored gradients G [N, D], S^2 [r] the stored gradients' squared
lengths along them, lambda > 0 the damping. With D <= N, V itself is kept and queries are preconditioned. With N < D the
inverse is never applied to a gradient: a score needs nothing but the dot products G g, since V = G^T M and G V = C are
matrices of N rows:

    G H^-1 g = (G g - C a) / lambda + C (a / (S^2 + lambda)),   a = V^T g = M^T (G g)

Both are the split form, which does not round S^2 / (S^2 + lambda) to one.
"""

from __future__ import annotations

from dataclasses import dataclass

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


LayerInverse = PrimalInverse | DualInverse


def identities(sizes: dict[str, int], device: torch.device) -> dict[str, LayerInverse]:
    """H = I for layers of D = `sizes`: scores are plain dot products."""
    none = torch.zeros(0, device=device)
    return {name: PrimalInverse(torch.zeros(size, 0, device=device), none, 1.0) for name, size in sizes.items()}


def to_tensors(inverses: dict[str, LayerInverse]) -> dict[str, Tensor]:
    """Everything but the dampings, under `<field>.<layer>`, on the CPU."""
    return {
        f"{field}.{name}": value.cpu()
        for name, inverse in inverses.items()
        for field, value in vars(inverse).items()
        if isinstance(value, Tensor)
    }


def from_tensors(
    tensors: dict[str, Tensor], damping: dict[str, float], device: torch.device
) -> dict[str, LayerInverse]:
    """The inverse of `to_tensors`, with each layer's damping."""

    def read(name: str) -> LayerInverse:
        kind = PrimalInverse if f"vectors.{name}" in tensors else DualInverse
        fields = [field for field in kind.__dataclass_fields__ if field != "damping"]
        return kind(**{field: tensors[f"{field}.{name}"].to(device) for field in fields}, damping=damping[name])

    return {name: read(name) for name in damping}
