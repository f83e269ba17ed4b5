"""The kernel of stored factors: rows in the lanes of vectors.

`ROWS` rows at a time are turned round and decoded once for all queries: vectors of the same number of each. A query's part
is then a product of small matrices, query [k, j] times v [j, ROWS], multiplied by u [k, ROWS] and summed over k: nothing is
summed across lanes, no lane is padding, and the arithmetic is that of the dense product, without dense rows.

Axes: Q queries, n rows, c factor rank, k the shorter projected side (of u), j the longer one (of v), b bits of a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from llvmlite import ir
from torch import Tensor

from lorif_core.codecs import FLOATS, packed_bytes
from lorif_core.kernel_code import HALF, INT, INTS, LANES, LONG, VECTOR, ZEROS, Code, Kernel, Value, every

WIDE = 2
"""Vectors of rows."""
ROWS = WIDE * LANES
HEIGHTS = (6, 5, 4)
"""Of k that are summed at once: 12 sums, 2 vectors of rows and a number of the query fill 16 registers."""
UNROLLED = 4
"""Steps of j between two tests for the end."""
WORDS = 4
"""32-bit words of a row that are turned round at a time: the half of a vector."""
WORD_BITS, WORD_BYTES = 32, 4
WORD_VECTOR = ir.VectorType(INT, WORDS)
JOINED = INTS([0, 1, 2, 3, 4, 5, 6, 7])
LOW, HIGH = INTS([0, 8, 1, 9, 4, 12, 5, 13]), INTS([2, 10, 3, 11, 6, 14, 7, 15])
LOW_PAIRS, HIGH_PAIRS = INTS([0, 1, 8, 9, 4, 5, 12, 13]), INTS([2, 3, 10, 11, 6, 7, 14, 15])


def factors(d1: int, d2: int, rank: int, bits: int) -> Kernel:
    """Queries as `arranged` has them; the file's tensors: left and right, or codes and scale.

    Args:
        d1: the sides of the layers' projected gradients.
        d2: theirs.
        rank: of its factors.
        bits: of a stored number.
    """
    code = _Factors(d1, d2, rank, bits)
    with code.each_layer(), code.repeat(code.row, ROWS, code.n, whole=False):
        for tensor, size in enumerate(code.row_bytes):
            code.fetch(tensor, ROWS, LONG(0), ROWS * size)
        code.decode()
        with code.each_query() as (query, scores):
            code.add_scores(query, scores)
    return code.finish()


def arranged(queries: Tensor) -> Tensor:
    """[Q, d1, d2] in the kernel's order: [Q, tiles, j, height], where k is tiles times height, padded with zeros."""
    sides = queries if queries.shape[1] <= queries.shape[2] else queries.mT  # [Q, k, j]
    height, tiles = _tiles(sides.shape[1])
    padded = torch.nn.functional.pad(sides, (0, 0, 0, height * tiles - sides.shape[1]))
    return padded.view(-1, tiles, height, sides.shape[2]).mT.contiguous()


def _tiles(short: int) -> tuple[int, int]:
    """(height, how many) of the pieces of k with the least padding, the highest of them."""
    height = min((height for height in HEIGHTS if height <= short), key=lambda x: -(-short // x) * x, default=short)
    return height, -(-short // height)


class _Factors(Code):
    """Its code."""

    def __init__(self, d1: int, d2: int, rank: int, bits: int) -> None:
        self.short, self.long = sorted((d1, d2))
        self.height, self.tiles = _tiles(self.short)
        self.rank, self.bits, self.each = rank, bits, WORD_BITS // bits
        space = self.height * self.tiles - self.short  # that the last tile takes beyond u: zeros, or finite
        if bits in FLOATS:  # the columns of a side are interleaved
            row_bytes = [rank * d1 * bits // 8, rank * d2 * bits // 8]
            self.counts = [rank * d1, rank * d2]
            second, end = rank * (d1 + space), rank * (d1 + d2 + 2 * space)
            self.step, self.column = rank, 1
        else:  # a column's sides are one behind the other
            row_bytes = [rank * packed_bytes(d1 + d2, bits), 2 * rank]
            self.column_words = -(-(d1 + d2) // self.each)
            second = d1
            self.step, self.column = 1, self.column_words * self.each + space
            end = rank * self.column
        self.u, self.v = (0, second) if d1 <= d2 else (second, 0)
        self.second = second
        super().__init__(row_bytes, 4 * self.height * self.tiles * self.long, ROWS)
        self.numbers = self.variable(VECTOR, end * WIDE)  # [numbers, WIDE]
        self.counter, self.outer, self.tile = (self.variable(LONG) for _ in range(3))
        with self.counted(self.counter, 1, end * WIDE) as place:
            self.at.store(ZEROS, self.at.gep(self.numbers, [place]))

    @contextmanager
    def counted(self, counter: Value, step: int, stop: int) -> Iterator[Value]:
        """The block with a counter of zero, `step`, ... while a step is left before `stop`."""
        self.at.store(LONG(0), counter)
        with self.repeat(counter, step, stop):
            yield self.at.load(counter, typ=LONG)

    def number(self, index: Value, w: int) -> Value:
        """The address of a decoded number's vector of rows."""
        return self.at.gep(self.numbers, [self.at.add(self.at.mul(index, LONG(WIDE)), LONG(w))])

    def decode(self) -> None:
        """The numbers of the next `ROWS` rows."""
        if self.bits in FLOATS:
            for tensor, (count, begin) in enumerate(zip(self.counts, (0, self.second), strict=True)):
                self.floats(tensor, count, begin)
        else:
            with self.counted(self.outer, 1, self.rank) as column:
                for w in range(WIDE):
                    self.codes(column, w)

    def floats(self, tensor: int, count: int, begin: int) -> None:
        """All of a tensor's."""
        block = WORDS * self.each

        def some(word: Value, some_numbers: int) -> None:
            first = self.at.add(self.at.mul(word, LONG(self.each)), LONG(begin))
            for w in range(WIDE):
                words = self.turned(tensor, self.at.mul(word, LONG(WORD_BYTES)), w)
                for i in range(some_numbers):
                    x = words[i // self.each]
                    if self.bits == 16:  # bfloat16 are the upper half of a float32
                        x = self.at.and_(x, every(-1 << 16)) if i % 2 else self.at.shl(x, every(16))
                    self.at.store(self.at.bitcast(x, VECTOR), self.number(self.at.add(first, LONG(i)), w))

        with self.counted(self.counter, WORDS, count // block * WORDS) as word:
            some(word, block)
        if count % block:
            some(LONG(count // block * WORDS), count % block)

    def codes(self, column: Value, w: int) -> None:
        """A column's: one side times the square of its scale, which both sides have."""
        at, bits, blocks = self.at, self.bits, -(-self.column_words // WORDS)
        start = at.mul(column, LONG(self.row_bytes[0] // self.rank))
        words = self.variable(INTS, blocks * WORDS)
        with self.counted(self.counter, WORDS, blocks * WORDS) as word:
            found = self.turned(0, at.add(start, at.mul(word, LONG(WORD_BYTES))), w)
            for i, x in enumerate(found):
                at.store(x, at.gep(words, [at.add(word, LONG(i))]))
        begin = at.mul(column, LONG(self.column))
        with self.counted(self.counter, 1, self.column_words) as word:
            x = at.load(at.gep(words, [word]), typ=INTS)
            first = at.add(begin, at.mul(word, LONG(self.each)))
            for i in range(self.each):
                code = at.and_(at.lshr(x, every(bits * i)), every((1 << bits) - 1))
                level = at.fadd(at.sitofp(code, VECTOR), every(0.5 - (1 << (bits - 1))))
                at.store(level, self.number(at.add(first, LONG(i)), w))
        halves = ir.Constant(ir.VectorType(HALF, LANES), ir.Undefined)
        for row in range(LANES):
            place = self.address(self.place(1, LANES * w + row), at.mul(column, LONG(2)))
            halves = at.insert_element(halves, at.load(place, align=1, typ=HALF), INT(row))
        scale = at.bitcast(at.shl(at.zext(halves, INTS), every(16)), VECTOR)
        square = at.fmul(scale, scale)
        with self.counted(self.counter, 1, self.short) as k:
            place = self.number(at.add(begin, at.add(k, LONG(self.u))), w)
            at.store(at.fmul(at.load(place, typ=VECTOR), square), place)

    def turned(self, tensor: int, byte: Value, w: int) -> list[Value]:
        """`WORDS` words from a byte of the rows of one vector on: [rows, `WORDS`] turned into [`WORDS`, rows]."""
        at = self.at
        halves = [
            at.load(self.address(self.place(tensor, LANES * w + row), byte), align=1, typ=WORD_VECTOR)
            for row in range(LANES)
        ]
        a, b, c, d = (at.shuffle_vector(halves[row], halves[row + WORDS], JOINED) for row in range(WORDS))
        pairs = [(at.shuffle_vector(a, b, part), at.shuffle_vector(c, d, part)) for part in (LOW, HIGH)]
        return [at.shuffle_vector(*pair, part) for pair in pairs for part in (LOW_PAIRS, HIGH_PAIRS)]

    def add_scores(self, query: Value, scores: Value) -> None:
        """To the scores of the decoded rows, add the sum over columns and k of u[k] sum over j of query[k, j] v[j]."""
        at = self.at
        places = [self.address(scores, LONG(4 * LANES * w)) for w in range(WIDE)]
        totals = [self.variable(VECTOR) for _ in range(WIDE)]
        for place, total in zip(places, totals, strict=True):
            at.store(at.load(place, align=4, typ=VECTOR), total)
        columns = self.counted(self.outer, self.column, self.column * self.rank)
        with columns as column, self.counted(self.tile, 1, self.tiles) as tile:
            self.add_tile(query, totals, column, tile)
        for place, total in zip(places, totals, strict=True):
            at.store(at.load(total, typ=VECTOR), place, align=4)

    def add_tile(self, query: Value, totals: list[Value], column: Value, tile: Value) -> None:
        """The part of a tile of k."""
        at = self.at
        sums = {(i, w): self.variable(VECTOR) for i in range(self.height) for w in range(WIDE)}
        for total in sums.values():
            at.store(ZEROS, total)
        piece = self.address(query, at.mul(tile, LONG(4 * self.height * self.long)))

        def add(j: Value) -> None:
            index = at.add(column, at.add(at.mul(j, LONG(self.step)), LONG(self.v)))
            v = [at.load(self.number(index, w), typ=VECTOR) for w in range(WIDE)]
            line = self.address(piece, at.mul(j, LONG(4 * self.height)))
            for i in range(self.height):
                number = self.splat(at.load(self.address(line, LONG(4 * i)), align=4, typ=ir.FloatType()))
                for w in range(WIDE):
                    self.add_product(sums[i, w], number, v[w])

        with self.counted(self.counter, UNROLLED, self.long) as first:
            for i in range(UNROLLED):
                add(at.add(first, LONG(i)))
        for j in range(self.long // UNROLLED * UNROLLED, self.long):
            add(LONG(j))
        for i in range(self.height):
            k = at.add(at.mul(tile, LONG(self.height)), LONG(i))
            index = at.add(column, at.add(at.mul(k, LONG(self.step)), LONG(self.u)))
            for w in range(WIDE):
                u = at.load(self.number(index, w), typ=VECTOR)
                self.add_product(totals[w], at.load(sums[i, w], typ=VECTOR), u)
