"""Both forms of the damped inverse against a dense solve, for directions that are no eigenvectors too.

Axes: N = 40 rows, D = 90, r = 7 directions, Q = 5 queries.
"""

from __future__ import annotations

import pytest
import torch

from lorif_core.curvature import top_eigenvectors
from lorif_core.inverse import DualInverse, PrimalInverse, from_tensors, to_tensors

DAMPING = 0.3


@pytest.mark.parametrize("converged", [True, False])
def test_both_forms_are_the_dense_inverse(converged: bool) -> None:
    """Ritz directions of a random subspace are orthonormal only in V, not eigenvectors: H is built of them all the same."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 90, generator=generator, dtype=torch.float64)
    queries = torch.randn(5, 90, generator=generator, dtype=torch.float64)
    kernel = rows @ rows.T
    if converged:
        directions, values = top_eigenvectors(kernel, 7, seed=0)
    else:
        subspace = torch.linalg.qr(torch.randn(40, 7, generator=generator, dtype=torch.float64))[0]
        values, rotation = torch.linalg.eigh(subspace.T @ kernel @ subspace)
        directions = subspace @ rotation
    weights = directions / values.sqrt()
    vectors = rows.T @ weights  # [D, r]
    inverse = torch.linalg.inv(vectors * values @ vectors.T + DAMPING * torch.eye(90))
    expected, own = queries @ inverse @ rows.T, ((rows @ inverse) * rows).sum(1)

    outside = kernel.diagonal() - (kernel @ weights).square().sum(1)
    dual = DualInverse(weights, kernel @ weights, values, outside, DAMPING)
    torch.testing.assert_close(dual.scores(queries @ rows.T).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dual.self_influence().double(), own, rtol=1e-5, atol=1e-5)
    primal = PrimalInverse(vectors, values, DAMPING)
    torch.testing.assert_close(primal.precondition(queries).double() @ rows.T, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(primal.quadratic(rows), own, rtol=1e-5, atol=1e-5)


def test_written_and_read_back() -> None:
    one = torch.ones(2, 1)
    inverses = {
        "a": PrimalInverse(one, torch.ones(1), 2.0),
        "b.c": DualInverse(one, 3 * one, torch.ones(1), one[:, 0], 4.0),
    }
    read = from_tensors(to_tensors(inverses), {"a": 2.0, "b.c": 4.0}, torch.device("cpu"))
    assert repr(read) == repr(inverses)
