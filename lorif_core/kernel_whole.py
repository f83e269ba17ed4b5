"""The kernel of whole gradients: a row's numbers in the lanes of vectors.

A code q of b bits stands for q + 1/2 - 2^(b-1) in units of the row's scale. What is added to q is the same for every row:
times the query's numbers, lane by lane, it is where a row's sums begin. So is what a code of few bits is multiplied by where
it is left in its place in a word: by as much, the query's number is smaller.

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
UNROLLED = 2
"""Vectors between two tests for the end."""
IN_PLACE = 2
"""Bits of the codes that are not moved to the lowest of a word."""
HALVES = (
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
)
"""Of two vectors, what is added to what until each lane is the sum of one of eight vectors, in their order."""


def whole(size: int, bits: int) -> Kernel:
    """Queries as `padded` has them; the file's tensors: gradient, or codes and scale.

    Args:
        size: D.
        bits: of a stored number.
    """
    code = _Whole(size, bits)
    for count in (ROWS, 1):
        with code.repeat(code.row, count, code.n):
            if count == ROWS:
                code.fetch(ROWS)
            with code.each_query() as (query, scores):
                code.some_rows(query, scores, count)
    return code.finish()


def padded(queries: Tensor, bits: int) -> Tensor:
    """[Q, d1, d2] as the kernel takes them [Q, 1 + D / lanes, lanes]: what sums begin with, and the numbers, zeros behind."""
    flat = torch.nn.functional.pad(queries.flatten(1), (0, -queries[0].numel() % LANES))
    numbers = flat.view(len(queries), -1, LANES)
    if bits in FLOATS:
        return torch.nn.functional.pad(numbers, (0, 0, 1, 0))
    begin = numbers.double().sum(1, keepdim=True) * (0.5 - 2 ** (bits - 1))
    factors = 2.0 ** (-bits * torch.arange(LANES)) if bits <= IN_PLACE else torch.ones(LANES)
    return torch.cat([begin.float(), numbers * factors], 1)


class _Whole(Code):
    """Its code."""

    def __init__(self, size: int, bits: int) -> None:
        self.size, self.bits = size, bits
        row_bytes = [packed_bytes(size, bits)] + ([] if bits in FLOATS else [2])
        super().__init__(row_bytes, 4 * LANES * (1 + -(-size // LANES)), 1)

    def some_rows(self, query: Value, scores: Value, rows: int) -> None:
        """Add, to the scores of some rows, the sum over D of query[p] x[p]."""
        sums = [self.variable(VECTOR) for _ in range(rows)]
        for total in sums:
            self.at.store(self.at.load(query, align=4, typ=VECTOR), total)
        starts = [self.place(0, row) for row in range(rows)]
        counter = self.variable(LONG)

        def add(t: Value, count: int) -> None:
            place = self.address(query, self.at.mul(self.at.add(t, LONG(1)), LONG(4 * LANES)))
            numbers = self.at.load(place, align=4, typ=VECTOR)
            for start, total in zip(starts, sums, strict=True):
                place = self.address(start, self.at.mul(t, LONG(self.bits)))
                self.add_product(total, numbers, self.decoded(place, count))

        vectors = self.size // LANES
        self.at.store(LONG(0), counter)
        with self.repeat(counter, UNROLLED, vectors):
            for i in range(UNROLLED):
                add(self.at.add(self.at.load(counter, typ=LONG), LONG(i)), LANES)
        for t in range(vectors // UNROLLED * UNROLLED, vectors):
            add(LONG(t), LANES)
        if self.size % LANES:
            add(LONG(vectors), self.size % LANES)
        for row in range(0 if self.bits in FLOATS else rows):
            self.at.store(self.at.fmul(self.at.load(sums[row], typ=VECTOR), self.scale(row)), sums[row])
        self.add_scores(scores, sums)

    def decoded(self, place: Value, count: int) -> Value:
        """The numbers at an address, or their codes; those beyond the first `count` are zero, or finite if they are codes."""
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
            codes = self.splat(at.load(place, align=1, typ=INT))
            starts, mask = [bits * i for i in range(LANES)], (1 << bits) - 1
            if bits > IN_PLACE:
                codes = at.and_(at.lshr(codes, INTS(starts)), every(mask))
            else:
                codes = at.and_(codes, INTS([mask << start for start in starts]))
        return at.sitofp(codes, VECTOR)

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
        self.at.store(self.at.fadd(self.at.load(scores, align=4, typ=found.type), found), scores, align=4)
