"""The kernel of whole gradients: a row's numbers in the lanes of vectors.

Axes: Q queries, n rows, D = d1 d2, b bits of a stored number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from llvmlite import ir
from torch import Tensor

from lorif_core.codecs import FLOATS, packed_bytes
from lorif_core.kernel_code import (
    BYTE,
    FLOAT,
    HALF,
    INT,
    INTS,
    LANES,
    LONG,
    VECTOR,
    ZEROS,
    Code,
    Kernel,
    Value,
    every,
)

ROWS = 4
"""That share every load of a query."""
HALVES = (
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
)
"""Of two vectors, what is added to what until each lane is the sum of one of eight vectors, in their order."""


def whole(size: int, bits: int, chunk: int) -> Kernel:
    """Queries as `padded` has them; the file's tensors: gradient, or codes and scale.

    Args:
        size: D.
        bits: of a stored number.
        chunk: bytes to read at a time, about.
    """
    code = _Whole(size, bits, chunk)
    with code.chunks() as (start, rows), code.each_query(start) as (query, scores):
        code.at.store(LONG(0), code.row)
        for count in (ROWS, 1):
            with code.repeat(code.row, count, rows):
                code.some_rows(query, scores, count)
    return code.finish(1)


def padded(queries: Tensor) -> Tensor:
    """[Q, d1, d2] as the kernel takes them: flat, with zeros up to whole vectors."""
    return torch.nn.functional.pad(queries.flatten(1), (0, -queries[0].numel() % LANES)).contiguous()


class _Whole(Code):
    """Its code."""

    def __init__(self, size: int, bits: int, chunk: int) -> None:
        self.size, self.bits = size, bits
        row_bytes = [packed_bytes(size, bits)] + ([] if bits in FLOATS else [2])
        super().__init__(row_bytes, 4 * LANES * -(-size // LANES), ROWS, chunk)

    def some_rows(self, query: Value, scores: Value, rows: int) -> None:
        """Add, to the scores of some rows, the sum over D of query[p] x[p]."""
        sums = [self.variable(VECTOR) for _ in range(rows)]
        for total in sums:
            self.at.store(ZEROS, total)
        starts = [self.place(0, row) for row in range(rows)]
        counter = self.variable(LONG)

        def add(t: Value, count: int) -> None:
            place = self.address(query, self.at.mul(t, LONG(4 * LANES)))
            numbers = self.at.load(place, align=4, typ=VECTOR)
            for start, total in zip(starts, sums, strict=True):
                place = self.address(start, self.at.mul(t, LONG(self.bits)))
                self.add_product(total, numbers, self.decoded(place, count))

        self.at.store(LONG(0), counter)
        with self.repeat(counter, 1, self.size // LANES):
            add(self.at.load(counter, typ=LONG), LANES)
        if self.size % LANES:
            add(LONG(self.size // LANES), self.size % LANES)
        for row in range(0 if self.bits in FLOATS else rows):
            self.at.store(self.at.fmul(self.at.load(sums[row], typ=VECTOR), self.scale(row)), sums[row])
        self.add_scores(scores, sums)

    def decoded(self, place: Value, count: int) -> Value:
        """The numbers at an address; those beyond the first `count` are zero, or finite if they are codes."""
        at, bits = self.at, self.bits
        if bits in FLOATS:
            words = at.load(place, align=1, typ=ir.VectorType(ir.IntType(bits), LANES))
            if bits == 16:  # bfloat16 are the upper half of a float32
                words = at.shl(at.zext(words, INTS), every(16))
            if count < LANES:
                words = at.and_(words, INTS([-1 if i < count else 0 for i in range(LANES)]))
            return at.bitcast(words, VECTOR)
        if bits == 8:
            codes = at.zext(at.load(place, align=1, typ=ir.VectorType(BYTE, LANES)), INTS)
        else:
            codes = at.lshr(self.splat(at.load(place, align=1, typ=INT)), INTS([bits * i for i in range(LANES)]))
            codes = at.and_(codes, every((1 << bits) - 1))
        return self.levels(codes, bits)

    def scale(self, row: int) -> Value:
        """A row's bfloat16 scale in every lane."""
        word = self.at.load(self.place(1, row), align=1, typ=HALF)
        return self.splat(self.at.bitcast(self.at.shl(self.at.zext(word, INT), INT(16)), FLOAT))

    def add_scores(self, scores: Value, sums: Sequence[Value]) -> None:
        """Add up each row's vector, halves of two rows side by side, and that to the rows' scores: at most 8 rows."""
        rows = [self.at.load(total, typ=VECTOR) for total in sums] + [ZEROS] * (LANES - len(sums))
        for first, second in HALVES:
            half = len(rows) // 2
            rows = [
                self.at.fadd(self.at.shuffle_vector(a, b, INTS(first)), self.at.shuffle_vector(a, b, INTS(second)))
                for a, b in zip(rows[:half], rows[half:], strict=True)
            ]
        found = self.at.shuffle_vector(rows[0], ZEROS, ir.VectorType(INT, len(sums))(list(range(len(sums)))))
        place = self.address(scores, self.at.mul(self.at.load(self.row, typ=LONG), LONG(4)))
        self.at.store(self.at.fadd(self.at.load(place, align=4, typ=found.type), found), place, align=4)
