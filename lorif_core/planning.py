"""A number of bytes an example, turned into what to store of it: f, c, storage and bits, and the sides of each layer.

Axes: a / b input and output side of a layer, d1 / d2 the projected sides, f projection factor, c factor rank.

Every storage, number of bits and c is given the smallest f whose rows fit, and the one of the highest expected quality is
taken: LDS relative to the whole gradient at 16 bits, as retrainings of a small GPT (sequences) and of an MLP (vectors) have
it (tests/benchmarks/codecs.py; papers/lorif.md 17). Expectations order the choices; they promise no figure for your model.
(At 1 bit, turning the projections anew moves the LDS of the small GPT by 0.008, one standard deviation, so that nearby f
cannot be told apart there.)

A plan's f says how many numbers a layer keeps, a b / f^2, of which both sides get as near to equally many directions as they
have (`even_sizes`). On both models that is worth more than any choice of bits: 0.02 of LDS at 200 bytes of the GPT, 0.02 to
0.04 at 50 to 300 of the MLP.

Bytes are those of full shards, headers included; in an index of one small shard the header weighs more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from lorif_core.codecs import FLOATS, row_bytes, stored_rank
from lorif_core.manifest import LayerEntry
from lorif_core.options import Bits, IndexOptions, Storage
from lorif_core.projections import even_sizes, projected_size
from lorif_core.store import shard_rows

RANKS = (1, 2, 4)
CUT = {True: 0.05, False: 0.55}
"""By whether a layer sees vectors: what cutting d from n = f d costs, in units of f / d (`_projection_keeps`)."""
BITS_KEEP: dict[Storage, dict[int, float]] = {
    "factors": {32: 1.0, 16: 1.0, 8: 1.0, 4: 0.97, 2: 0.9, 1: 0.7},
    "dense": {32: 1.0, 16: 1.0, 8: 1.0, 4: 0.99, 2: 0.95, 1: 0.87},
}
RANK_KEEPS = {1: 0.64, 2: 0.74, 4: 0.8}
"""Of the LDS of a sequence's whole gradient, at equal f."""
HEADER_ENTRY = 90
"""Bytes a tensor takes in a shard's header, its layer's name aside."""


@dataclass(frozen=True)
class Shape:
    """What the plan must know of a layer."""

    name: str
    kind: str
    rows: int
    columns: int
    vectors: bool
    """One vector an example: its gradient has rank one."""
    ids: bool = False
    """Its inputs are ids."""


@dataclass(frozen=True)
class Plan:
    """Options that fit a budget, the bytes an example then costs, and why these."""

    options: IndexOptions
    bytes: int
    quality: float
    reason: str


def entries(shapes: Sequence[Shape], options: IndexOptions) -> list[LayerEntry]:
    """The layers as they would be stored."""
    found = []
    for shape in shapes:
        d1, d2 = _sizes(shape, options)
        rank = stored_rank(d1, d2, shape.vectors, options.storage, options.factor_rank)
        found.append(LayerEntry(shape.name, shape.kind, shape.rows, shape.columns, d1, d2, rank))
    return found


def _sizes(shape: Shape, options: IndexOptions) -> tuple[int, int]:
    """(d1, d2) of a layer: of equal f, but where a budget is planned as even as can be (of ids each is a direction)."""
    f = options.projection_factor
    if options.projection == "identity":
        return shape.rows, shape.columns
    if options.bytes_per_example is not None and not shape.ids:
        return even_sizes(shape.rows, shape.columns, f)
    return projected_size(shape.rows, f), projected_size(shape.columns, f)


def disk_bytes(layers: Sequence[LayerEntry], bits: int) -> int:
    """Bytes of one example in a full shard, with its share of the header."""
    row = row_bytes(layers, bits)
    return row - (-header_bytes(layers, bits) // shard_rows(row))


def header_bytes(layers: Sequence[LayerEntry], bits: int) -> int:
    """Bytes of a full shard's header, at most: an entry for each tensor."""
    tensors = [(layer.name, 1 if bits in FLOATS and not layer.rank else 2) for layer in layers] + [("loss", 1)]
    return sum(count * (HEADER_ENTRY + len(name.encode())) for name, count in tensors)


def plan(shapes: Sequence[Shape], options: IndexOptions, budget: int) -> Plan:
    """The options of highest expected quality whose rows take at most `budget` bytes.

    Args:
        shapes: the layers to attribute.
        options: whose projection is kept and whose other storage options are planned.
        budget: bytes an example, all included.

    Raises:
        ValueError: not even the coarsest choice fits.
    """
    candidates = [
        replace(options, storage=storage, bits=bits, factor_rank=rank, bytes_per_example=budget)
        for storage in get_args(Storage)
        for bits in get_args(Bits)
        for rank in (RANKS if storage == "factors" else RANKS[:1])
    ]
    found = [fitted for candidate in candidates if (fitted := _smallest_factor(shapes, candidate, budget)) is not None]
    if not found:
        coarsest = replace(
            options,
            projection_factor=_largest_side(shapes),
            storage="factors",
            factor_rank=1,
            bits=1,
            bytes_per_example=budget,
        )
        least = disk_bytes(entries(shapes, coarsest), 1)
        raise ValueError(
            f"bytes_per_example: expected at least {least} for the {len(shapes)} layers of this model, got {budget}; "
            "allow more, or attribute fewer layers (layers=...)"
        )
    ranked = sorted(found, key=lambda choice: -_quality(shapes, choice))
    best = ranked[0]
    size = disk_bytes(entries(shapes, best), best.bits)
    reason = (
        f"{_describe(best)}: {size} of {budget} bytes an example, "
        f"with {_quality(shapes, best):.2f} of the whole gradient's quality expected"
    )
    if other := next((x for x in ranked if (x.storage, x.bits) != (best.storage, best.bits)), None):
        reason += f"; next best {_describe(other)}, {_quality(shapes, other):.2f}"
    return Plan(best, size, _quality(shapes, best), reason)


def _smallest_factor(shapes: Sequence[Shape], options: IndexOptions, budget: int) -> IndexOptions | None:
    """The options at the smallest f, in hundredths, that fits the budget; None where none does."""

    def at(hundredths: int) -> IndexOptions:
        return replace(options, projection_factor=hundredths / 100)

    def fits(hundredths: int) -> bool:
        return disk_bytes(entries(shapes, at(hundredths)), options.bits) <= budget

    low, high = 100, 100 * _largest_side(shapes)
    if options.projection == "identity":
        return at(low) if fits(low) else None
    if not fits(high):
        return None
    while low < high:  # bytes fall as f grows
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return at(low)


def _quality(shapes: Sequence[Shape], options: IndexOptions) -> float:
    """Expected LDS relative to whole gradients, layers weighted by their parameters."""
    weights = [shape.rows * shape.columns for shape in shapes]
    total = 0.0
    for shape, entry, weight in zip(shapes, entries(shapes, options), weights, strict=True):
        factored = 1.0 if entry.rank == 0 or shape.vectors else RANK_KEEPS[options.factor_rank]
        coded = BITS_KEEP["factors" if entry.rank else "dense"][options.bits]
        total += weight * factored * coded * _projection_keeps(entry, shape.vectors)
    return total / sum(weights)


def _projection_keeps(entry: LayerEntry, vectors: bool) -> float:
    """What the projected sides keep: 1 / (1 + `CUT` f / d), f and d in the mean over both sides.

    On the small models f and d = n / f say the same. Whether a wide one needs as many d or as small an f is open; this
    takes the middle.
    """
    kept = math.sqrt(entry.size)
    factor = math.sqrt(entry.rows * entry.columns) / kept
    return 1 / (1 + CUT[vectors] * factor / kept)


def _largest_side(shapes: Sequence[Shape]) -> int:
    return max(max(shape.rows, shape.columns) for shape in shapes)


def _describe(options: IndexOptions) -> str:
    what = f"rank-{options.factor_rank} factors" if options.storage == "factors" else "whole gradients"
    return f"{options.bits}-bit {what} at f={options.projection_factor:g}"
