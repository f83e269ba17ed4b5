"""The kernel of whole gradients: a row's numbers in the lanes of vectors.

A vector of 32-bit words is loaded once for the numbers packed in them: the first number of every word is one vector of numbers,
the second of every word the next, and queries are arranged alike. What is left of a row is loaded as shorter words.

A code q of b bits stands for q + 1/2 - 2^(b-1) in units of the row's scale. What is added to q is the same for every row:
times the query's numbers, lane by lane, it is where a row's sums begin. So is what a code is multiplied by where it is left
in its place in a word: by as much, the query's number is smaller.

Axes: Q queries, n rows, D = d1 d2, b bits of a stored number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from llvmlite import ir
from torch import Tensor

from lorif_core.codecs import FLOATS, packed_bytes
from lorif_core.kernel_code import (
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
WIDTHS = (32, 16, 8)
"""Bits of a word: of most of a row, and of what is left of it."""
WORD = WIDTHS[0]
HALVES = (
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
)
"""Of two vectors, what is added to what until each lane is the sum of one of eight vectors, in their order."""


def whole(size: int, bits: int) -> Kernel:
    """Queries as `arranged` has them; the file's tensors: gradient, or codes and scale.

    Args:
        size: D.
        bits: of a stored number.
    """
    code = _Whole(size, bits)
    with code.each_layer():
        for count in (ROWS, 1):
            with code.repeat(code.row, count, code.n), code.each_query() as (query, scores):
                code.some_rows(query, scores, count)
    return code.finish()


def arranged(queries: Tensor, bits: int) -> Tensor:
    """[Q, d1, d2] as the kernel takes them [Q, 1 + vectors, lanes]: what sums begin with, and the numbers, zeros behind."""
    numbers = queries.flatten(1)
    vectors, places, start = [], [], 0
    for width, count in _words(numbers.shape[1], bits):
        each, stop = width // bits, start + LANES * (width // bits) * count
        some = torch.nn.functional.pad(numbers[:, start:stop], (0, max(0, stop - numbers.shape[1])))
        words = some.view(len(queries), count, LANES, each)
        vectors.append(words.mT.flatten(1, 2))  # number i of each word side by side
        places += [_place(i, width, bits) for i in range(each)] * count
        start = stop
    ordered = torch.cat(vectors, 1)
    if bits in FLOATS:
        return torch.nn.functional.pad(ordered, (0, 0, 1, 0))
    begin = ordered.double().sum(1, keepdim=True) * (0.5 - 2 ** (bits - 1))
    return torch.cat([begin.float(), ordered * 2.0 ** -torch.tensor(places).unsqueeze(1)], 1)


def _words(size: int, bits: int) -> list[tuple[int, int]]:
    """The vectors of words in which a row of `size` numbers is loaded, the least beyond its end: (bits of a word, how many)."""
    least = max(8, bits)
    units = -(-size * bits // (LANES * least))
    counts = [units * least // WORD, *(units * least // width % 2 for width in WIDTHS[1:])]
    return [(width, count) for width, count in zip(WIDTHS, counts, strict=True) if count]


def _place(i: int, width: int, bits: int) -> int:
    """How many bits above the lowest of a word its code `i` is where it is multiplied: the highest one is moved down."""
    return bits * i if bits * (i + 1) < width else 0


class _Whole(Code):
    """Its code."""

    def __init__(self, size: int, bits: int) -> None:
        self.size, self.bits = size, bits
        self.words = _words(size, bits)
        vectors = sum(width // bits * count for width, count in self.words)
        row_bytes = [packed_bytes(size, bits)] + ([] if bits in FLOATS else [2])
        super().__init__(row_bytes, 4 * LANES * (1 + vectors), 1)

    def some_rows(self, query: Value, scores: Value, rows: int) -> None:
        """Add, to the scores of some rows, the sum over D of query[p] x[p]."""
        at = self.at
        sums = [self.variable(VECTOR) for _ in range(rows)]
        for total in sums:
            at.store(at.load(query, align=4, typ=VECTOR), total)
        starts = [self.place(0, row) for row in range(rows)]
        counter = self.variable(LONG)

        def add(number: Value, width: int, left: int) -> None:
            """The products of a vector of words, from a number of the row on, where so many are left."""
            kind = ir.VectorType(ir.IntType(width), LANES)
            byte = at.lshr(at.mul(number, LONG(self.bits)), LONG(3))
            self.fetch(0, rows, at.mul(byte, LONG(rows)), rows * LANES * width // 8)
            words = [at.load(self.address(start, byte), align=1, typ=kind) for start in starts]
            words = [at.zext(word, INTS) if width < WORD else word for word in words]
            each = width // self.bits
            for i in range(each):
                place = self.address(query, at.mul(at.add(number, LONG(LANES * (1 + i))), LONG(4)))
                numbers = at.load(place, align=4, typ=VECTOR)
                inside = [each * lane + i < left for lane in range(LANES)]
                for word, total in zip(words, sums, strict=True):
                    self.add_product(total, numbers, self.decoded(word, i, width, inside))

        number = 0
        for width, count in self.words:
            step = LANES * width // self.bits
            full = min(count, (self.size - number) // step)
            at.store(LONG(number), counter)
            number += full * step
            with self.repeat(counter, step, number):
                add(at.load(counter, typ=LONG), width, step)
            if full < count:
                add(LONG(number), width, self.size - number)
                number += step
        self.add_scores(scores, sums)

    def decoded(self, words: Value, i: int, width: int, inside: list[bool]) -> Value:
        """Number `i` of each word, or its code, in its place; floats beyond the row are zero, codes finite."""
        at, bits = self.at, self.bits
        if bits in FLOATS:
            if bits == 16:  # bfloat16 are the upper half of a float32
                words = at.and_(words, every(-1 << 16)) if i else at.shl(words, every(16))
            if not all(inside):
                words = at.and_(words, INTS([-1 if one else 0 for one in inside]))
            return at.bitcast(words, VECTOR)
        if bits < width:
            place, mask = _place(i, width, bits), (1 << bits) - 1
            words = at.and_(words, every(mask << place)) if place or not i else at.lshr(words, every(width - bits))
        return at.sitofp(words, VECTOR)

    def add_scores(self, scores: Value, sums: Sequence[Value]) -> None:
        """Add up each row's vector, halves of two rows side by side, and that, scaled, to the rows' scores: at most 8 rows."""
        at = self.at
        rows = [at.load(total, typ=VECTOR) for total in sums] + [ZEROS] * (LANES - len(sums))
        for first, second in HALVES:
            half = len(rows) // 2
            rows = [
                at.fadd(at.shuffle_vector(a, b, INTS(first)), at.shuffle_vector(a, b, INTS(second)))
                for a, b in zip(rows[:half], rows[half:], strict=True)
            ]
        halves, words, floats = (ir.VectorType(kind, len(sums)) for kind in (HALF, INT, FLOAT))
        found = at.shuffle_vector(rows[0], ZEROS, words(list(range(len(sums)))))
        if self.bits not in FLOATS:
            scale = at.zext(at.load(self.place(1, 0), align=1, typ=halves), words)
            found = at.fmul(found, at.bitcast(at.shl(scale, words([16] * len(sums))), floats))
        at.store(at.fadd(at.load(scores, align=4, typ=floats), found), scores, align=4)
