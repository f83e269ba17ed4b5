"""Comparison that raises and shows where two tensors differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WORST = 5


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm-wise relative error ||actual - expected|| / ||expected||, in float64 (0 / 0 is 0, x / 0 is inf)."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    difference, size = torch.linalg.norm(actual - expected).item(), torch.linalg.norm(expected).item()
    if size == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / size


def assert_close_report(
    actual: Tensor, expected: Tensor, rtol: float, what: str, names: Sequence[str] | None = None
) -> None:
    """Raise AssertionError unless ``relative_error(actual, expected) <= rtol``.

    The message holds the error and the worst entries as (index, actual, expected, ratio). ``names`` name the axes
    ("query", "train"), shown with the indices. A shape that differs or a value that is not finite fails always.
    """
    if tuple(actual.shape) != tuple(expected.shape):
        raise AssertionError(f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    if not torch.isfinite(e).all():
        raise AssertionError(f"{what}: the expected values themselves are not finite")
    error = relative_error(a, e)
    if error <= rtol:  # false for NaN, which therefore fails
        return
    gaps = (a - e).abs().nan_to_num(nan=float("inf")).flatten()  # [entries]
    lines = []
    for flat in gaps.topk(min(WORST, gaps.numel())).indices.tolist():
        index = [int(i) for i in torch.unravel_index(torch.tensor(flat), a.shape)]
        place = ", ".join(f"{n}={i}" for n, i in zip(names, index, strict=True)) if names else tuple(index)
        got, wanted = a.flatten()[flat].item(), e.flatten()[flat].item()
        ratio = got / wanted if wanted != 0.0 else float("nan")
        lines.append(f"  [{place}] actual {got:.9g}  expected {wanted:.9g}  ratio {ratio:.6g}")
    bad = int((~torch.isfinite(a)).sum())
    finite = f", {bad} of {a.numel()} entries are not finite" if bad else ""
    raise AssertionError(
        f"{what}: relative error {error:.3e} > {rtol:.1e}{finite}; worst entries:\n" + "\n".join(lines)
    )


def assert_rows_close(actual: Tensor, expected: Tensor, rtol: float, what: str) -> None:
    """The same row by row (axis 0), so that one wrong example with a small gradient does not hide behind the others."""
    if len(actual) != len(expected):
        raise AssertionError(f"{what}: {len(actual)} rows, expected {len(expected)}")
    for row, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close_report(a, e, rtol, f"{what}, row {row}")
