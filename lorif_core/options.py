"""The options of an index, checked together before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Final, Literal, TypeGuard, get_args

from lorif_core.precision import Precision

Projection = Literal["identity", "rademacher", "pca", "kfac", "kfac_true", "whitened"]
PLANNED = ("projection_factor", "factor_rank", "storage", "bits")
Storage = Literal["factors", "dense"]
Bits = Literal[32, 16, 8, 4, 2, 1]
AUTO: Final = "auto"
MOST_SEED = 2**32 - 1
"""Generators take 64 bits; a layer's number is added to it."""
RANK = 256
"""r where it is left to the engine and not every direction is taken."""
EXACT_SIDE = 768
"""The largest matrix whose full eigendecomposition is about as cheap as finding its top part by iteration."""
DampingRule = Literal["mean_norm", "trace", "paper", "absolute"]


@dataclass(frozen=True)
class IndexOptions:
    """What is stored of each example, and what it costs. A change of any of these needs another index."""

    projection: Projection = "pca"
    """identity: P = I; rademacher: random signs / sqrt(d); pca: top eigenvectors of input and output-gradient moments;
    whitened: those, whitened; kfac: whitened by moments of sampled labels, so that scores are plain dot products and the
    curvature's options have no effect; kfac_true: the same, of true labels (`lorif_core.whitening`). pca costs a pass over a
    sample (2 positions for each unit of the widest side, 2,048 at least) and some eigenvectors a side, those that whiten
    eight times as many positions or more; identity and rademacher cost neither."""
    projection_factor: float = 4
    """f: a side n becomes max(1, n // f), sides of at most 16 stay whole. No effect with `identity`. Bytes of factors fall as
    1 / f, those of whole gradients as 1 / f^2, and so does D, with which the curvature's time grows."""
    factor_rank: int = 1
    """c: rank of one example's stored layer gradient; more than a layer has means all of it. Bytes, and a query's time, grow
    as c; of vectors (T = 1) one is all there is."""
    storage: Storage = "factors"
    """factors: rank-c factors U [d1, c], V [d2, c] of the projected gradient, the gradient itself where that is no larger;
    dense: the gradient itself [d1, d2], exact factors where they are smaller (one vector an example)."""
    bits: Bits = 16
    """Bits of a stored number: 32 = float32, 16 = bfloat16, 8, 4, 2 or 1 = codes with a scale an example and factor. A query
    over coded factors takes about as long as over 16 bits (`python -m tests.benchmarks.scale`)."""
    bytes_per_example: int | None = None
    """Bytes an example may take in full shards, their headers included: plans the four options `PLANNED` names, f then
    with sides d1, d2 as even as can be (`lorif_core.planning`)."""
    precision: Precision = "32"
    """Of the forward and backward pass: 32 = as the model is, bf16 = under autocast; about half the time on a GPU."""
    layers: tuple[str, ...] | None = None
    """Names or globs of the layers to attribute; None = all supported."""
    seed: int = 0
    """Of random projections, of the power iteration's start, of the randomized SVD."""
    strict: bool = True
    """Refuse a model with layers that cannot be attributed; False leaves them out and records the share covered."""

    def problems(self) -> list[str]:
        """Every option that is out of its range, one sentence each."""
        found = []
        if self.projection not in get_args(Projection):
            found.append(f"projection: expected one of {get_args(Projection)}, got {self.projection!r}")
        if self.storage not in get_args(Storage):
            found.append(f"storage: expected one of {get_args(Storage)}, got {self.storage!r}")
        if not _is_integer(self.bits, 1) or self.bits not in get_args(Bits):
            found.append(f"bits: expected one of {get_args(Bits)}, got {self.bits!r}")
        if self.precision not in get_args(Precision):
            found.append(f"precision: expected one of {get_args(Precision)}, got {self.precision!r}")
        if not _is_integer(self.factor_rank, 1):
            found.append(f"factor_rank: expected an integer >= 1, got {self.factor_rank!r}")
        if not _is_number(self.projection_factor) or not 1 <= self.projection_factor < math.inf:
            found.append(f"projection_factor: expected a number >= 1, got {self.projection_factor!r}")
        if self.bytes_per_example is not None:
            if not _is_integer(self.bytes_per_example, 1):
                found.append(f"bytes_per_example: expected an integer >= 1, got {self.bytes_per_example!r}")
            defaults = IndexOptions()
            if given := [name for name in PLANNED if getattr(self, name) != getattr(defaults, name)]:
                found.append(f"bytes_per_example plans {', '.join(PLANNED)}: leave {' and '.join(given)} out")
        if self.layers is not None and not (
            isinstance(self.layers, tuple)
            and self.layers
            and all(isinstance(name, str) and name for name in self.layers)
        ):
            found.append(f"layers: expected None or names or globs of layers, got {self.layers!r}")
        if not _is_integer(self.seed, 0) or self.seed > MOST_SEED:
            found.append(f"seed: expected an integer from 0 to {MOST_SEED}, got {self.seed!r}")
        if not isinstance(self.strict, bool):
            found.append(f"strict: expected True or False, got {self.strict!r}")
        return found


@dataclass(frozen=True)
class CurvatureOptions:
    """How the stored gradients' second moment is approximated and damped. A change needs no new index."""

    curvature_rank: int | Literal["auto"] = AUTO
    """r: directions of the truncated SVD of a layer's stacked gradients; more than there are means all; 0 = none. "auto":
    256, but all where these cost no more to find: up to `EXACT_SIDE`, and in layers with more numbers than the index has
    examples, where these are few enough (`lorif_core.curvature.whole_layers`). A row costs at most 2 D^2 in the one pass that sums
    Gram matrices, about 4 D r in each of the five of a randomized SVD."""
    damping: float | Literal["auto"] = 0.5
    """Multiplier of the rule below, or lambda itself with `absolute`; "auto": each layer's lambda is chosen from the index
    alone (`lorif_core.damping`), whatever the rule, for one more reading of it; appends and purges then fit anew."""
    damping_rule: DampingRule = "mean_norm"
    """lambda of a layer = damping times: mean_norm: trace(GtG)/N; trace: trace(GtG)/D; paper: the mean of the r+p largest
    squared singular values; absolute: 1."""
    seed: int = 0
    """Of the randomized SVD's start."""

    @property
    def rank(self) -> int:
        """R as a number, of layers with more directions than are all taken."""
        return RANK if isinstance(self.curvature_rank, str) else self.curvature_rank

    def rank_of(self, directions: int) -> int:
        """R of a layer with as many directions."""
        whole = self.curvature_rank == AUTO and directions <= EXACT_SIDE
        return directions if whole else min(self.rank, directions)

    def problems(self) -> list[str]:
        """Every option that is out of its range, one sentence each."""
        found = []
        if self.curvature_rank != AUTO and not _is_integer(self.curvature_rank, 0):
            found.append(f"curvature_rank: expected an integer >= 0 or {AUTO!r}, got {self.curvature_rank!r}")
        if self.damping != AUTO and (not _is_number(self.damping) or not 0 < self.damping < math.inf):
            found.append(f"damping: expected a finite number > 0 or {AUTO!r}, got {self.damping!r}")
        if self.damping_rule not in get_args(DampingRule):
            found.append(f"damping_rule: expected one of {get_args(DampingRule)}, got {self.damping_rule!r}")
        return found


@dataclass(frozen=True)
class WorkOptions:
    """How the work is done: no score changes by more than rounding, unless memory is too short for an exact curvature."""

    bucket: int
    """Batches of padded texts sorted by length together (`lorif_core.bucketing`); 1 = none. That many are held."""
    memory_limit: int
    """Bytes of the sums a pass may hold: over the index for its curvature (`lorif_core.curvature`), over a sample of the examples
    for measured projections (`lorif_core.measured`). Less means more passes. A kept curvature takes what it was fitted with."""

    def problems(self) -> list[str]:
        """Every option that is out of its range, one sentence each."""
        found = []
        if not _is_integer(self.bucket, 1):
            found.append(f"bucket: expected an integer >= 1, got {self.bucket!r}")
        if not _is_integer(self.memory_limit, 1):
            found.append(f"memory_limit: expected bytes, an integer >= 1, got {self.memory_limit!r}")
        return found


NO_INDEX = ("curvature_rank", "damping", "damping_rule", "memory_limit", "progress", "bucket")
"""Options of an attributor that may change without another index."""


def checked(*options: IndexOptions | CurvatureOptions | WorkOptions) -> None:
    """Nothing, if all options are in range.

    Raises:
        ValueError: every problem of every group, one a line.
    """
    found = [problem for group in options for problem in group.problems()]
    if found:
        raise ValueError("\n".join(found))


def checked_changes(changes: Iterable[str]) -> None:
    """Nothing, if all these options may change without another index.

    Raises:
        ValueError: naming those that may not.
    """
    if fixed := sorted(set(changes) - set(NO_INDEX)):
        raise ValueError(
            f"load: expected only {', '.join(NO_INDEX)}, got {', '.join(fixed)}: the index was made with its own; "
            "leave them out, or build another index"
        )


def checked_count(k: object) -> int:
    """How many are asked for, as any kind of integer.

    Raises:
        ValueError: it is none, or below 1.
    """
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ValueError(f"k: expected an integer >= 1, got {k!r}")
    return int(k)


def _is_integer(value: object, least: int) -> bool:
    """Whether it is one of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def layer_patterns(layers: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """`layers` as the user may give it: None, one name or glob, or several; anything else as it is, to be refused."""
    if isinstance(layers, str):
        return (layers,)
    return tuple(layers) if isinstance(layers, Iterable) else layers


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Options in which two indexes differ, as `name: stored -> wanted`."""
    return [
        f"{k}: {stored.get(k)!r} -> {wanted.get(k)!r}"
        for k in sorted(stored | wanted)
        if stored.get(k) != wanted.get(k)
    ]
