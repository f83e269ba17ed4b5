"""Code of the compiled kernels, written out for one shape and codec: vectors of 8 float32 in LLVM's language.

Sizes are constants of the code, so that sums stay in registers and nothing is decoded but in them. The code reads the file
itself, as much at a time as stays in a core's cache. Axes: Q queries, n rows, c factor rank, k the shorter projected side, j
the longer one (padded to J, a multiple of 8), D = d1 d2, b bits of a stored number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from lorif_core.codecs import FLOATS, packed_bytes

LANES = 8
"""Numbers of a vector: 256 bits of float32. LLVM splits them where the machine has shorter ones."""
SUMS = 12
"""Vectors that are added up at once: of 16 registers, they leave some for the query and the rows."""
COLUMNS = 6
"""Vectors of a row's longer side at most, so that at least two rows share every load of the query."""
SLACK = 1024
"""Bytes that may be read beyond the last row; whatever they hold, scores do not depend on it."""
ENTRY = "add_scores"
"""The function: (scores [Q, n], queries [Q, ...], memory, file descriptor, where the first rows of each tensor begin in the
file, Q, n) -> rows that were read, fewer than n where the file ends too early."""

BYTE, HALF, INT, LONG, FLOAT = (*(ir.IntType(size) for size in (8, 16, 32, 64)), ir.FloatType())
POINTER = ir.PointerType()
INTS, VECTOR = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)
FUSED = ("contract",)
"""A product and a sum may be one instruction."""
HALVES = (
    ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
    ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
)
"""Of two vectors, what is added to what until each lane is the sum of one of eight vectors, in their order."""
Value = Any
"""Of `llvmlite.ir`, which has no types."""


@dataclass(frozen=True)
class Numbers:
    """Where some numbers lie in every row of one of the tensors."""

    tensor: int
    count: int
    bits: int
    begin: int = 0
    """In numbers from the row's first byte on."""
    step: int = 1
    """From one to the next."""

    @property
    def vectors(self) -> int:
        """That hold them."""
        return -(-self.count // LANES)


@dataclass(frozen=True)
class Kernel:
    """A kernel's code."""

    text: str
    memory: int
    """Bytes it reads to."""


def factors(d1: int, d2: int, rank: int, bits: int, chunk: int) -> Kernel:
    """The kernel of stored factors: query float32 [k, J]; files' tensors: left and right, or codes and scale.

    Args:
        d1: the sides of the layer's projected gradients.
        d2: theirs.
        rank: of its factors.
        bits: of a stored number.
        chunk: bytes to read at a time, about.
    """
    size = packed_bytes(d1 + d2, bits)
    wide = min(COLUMNS, -(-max(d1, d2) // LANES))
    if bits in FLOATS:
        row_bytes = [rank * d1 * bits // 8, rank * d2 * bits // 8]
        columns = [(Numbers(0, d1, bits, i, rank), Numbers(1, d2, bits, i, rank)) for i in range(rank)]
    else:
        row_bytes = [rank * size, 2 * rank]
        begins = [8 * size // bits * i for i in range(rank)]
        columns = [(Numbers(0, d1, bits, begin), Numbers(0, d2, bits, begin + d1)) for begin in begins]
    code = _Code(row_bytes, min(d1, d2) * -(-max(d1, d2) // LANES), min(SUMS // wide, LANES), chunk)
    ordered = [sides if d1 <= d2 else sides[::-1] for sides in columns]
    return code.finish(lambda rows: code.factors(ordered, rows, wide))


def whole(size: int, bits: int, chunk: int) -> Kernel:
    """The kernel of whole gradients: query float32 [D], padded to a multiple of 8; tensors: gradient, or codes and scale."""
    numbers = Numbers(0, size, bits)
    row_bytes = [packed_bytes(size, bits)] + ([] if bits in FLOATS else [2])
    code = _Code(row_bytes, numbers.vectors, 4, chunk)
    return code.finish(lambda rows: code.whole(numbers, rows))


class _Code:
    """One function as it is written, and the row that the next lines are about."""

    def __init__(self, row_bytes: list[int], query_vectors: int, together: int, chunk: int) -> None:
        """For tensors of so many bytes a row; `together` rows at once, where as many are left."""
        self.module = ir.Module()
        kind = ir.FunctionType(LONG, [POINTER, POINTER, POINTER, INT, *[LONG] * len(row_bytes), LONG, LONG])
        function = ir.Function(self.module, kind, ENTRY)
        self.all_scores, self.queries, self.memory, self.file, *self.offsets, self.count, self.n = function.args
        self.entry = ir.IRBuilder(function.append_basic_block())
        self.at = ir.IRBuilder(function.append_basic_block())
        self.body = self.at.block
        self.row_bytes, self.query_bytes, self.together = row_bytes, 4 * LANES * query_vectors, together
        self.chunk = max(chunk // sum(row_bytes) // together, 1) * together  # rows
        self.begins = [sum(row_bytes[:i]) * self.chunk + i * SLACK for i in range(len(row_bytes) + 1)]
        self.row = self.variable(LONG)

    def finish(self, some_rows: Callable[[int], None]) -> Kernel:
        """Write the loops over chunks, queries and rows; `some_rows(count)` writes what is done with `count` of them."""
        first, q = self.variable(LONG), self.variable(LONG)
        with self.repeat(first, LONG(self.chunk), self.n, whole=False):
            start = self.at.load(first, typ=LONG)
            left = self.at.sub(self.n, start)
            rows = self.at.select(self.at.icmp_signed("<", left, LONG(self.chunk)), left, LONG(self.chunk))
            self.read(start, rows)
            self.at.store(LONG(0), q)
            with self.repeat(q, LONG(1), self.count):
                number = self.at.load(q, typ=LONG)
                line = self.at.add(self.at.mul(number, self.n), start)
                self.scores = self.address(self.all_scores, self.at.mul(line, LONG(4)))
                self.query = self.address(self.queries, self.at.mul(number, LONG(self.query_bytes)))
                self.at.store(LONG(0), self.row)
                for count in sorted({self.together, 1}, reverse=True):
                    with self.repeat(self.row, LONG(count), rows):
                        some_rows(count)
        self.at.ret(self.n)
        self.entry.branch(self.body)
        return Kernel(str(self.module), self.begins[-1])

    def read(self, start: Value, rows: Value) -> None:
        """Read rows start, start + 1, ... of every tensor; return where the file ends before them."""
        kind = ir.FunctionType(LONG, [INT, POINTER, LONG, LONG])
        pread = self.module.globals.get("pread") or ir.Function(self.module, kind, "pread")
        for offset, size, begin in zip(self.offsets, self.row_bytes, self.begins, strict=False):
            wanted = self.at.mul(rows, LONG(size))
            place = self.at.add(offset, self.at.mul(start, LONG(size)))
            found = self.at.call(pread, [self.file, self.address(self.memory, LONG(begin)), wanted, place])
            with self.at.if_then(self.at.icmp_signed("!=", found, wanted), likely=False):
                self.at.ret(start)

    def variable(self, kind: Any, count: int = 1) -> Value:
        """Zero; registers hold it after optimisation, except for arrays."""
        place = self.entry.alloca(kind, count)
        if count == 1:
            self.at.store(ir.Constant(kind, None), place)
        return place

    @contextmanager
    def repeat(self, counter: Value, step: Value, stop: Value, whole: bool = True) -> Iterator[None]:
        """The block while a step (`whole`), or any of it, is left before `stop`; the counter goes up by it."""
        function = self.at.function
        test, body, after = (function.append_basic_block() for _ in range(3))
        self.at.branch(test)
        self.at.position_at_end(test)
        now = self.at.load(counter, typ=LONG)
        following = self.at.add(now, step)
        inside = self.at.icmp_signed("<=", following, stop) if whole else self.at.icmp_signed("<", now, stop)
        self.at.cbranch(inside, body, after)
        self.at.position_at_end(body)
        yield
        self.at.store(following, counter)
        self.at.branch(test)
        self.at.position_at_end(after)

    def place(self, tensor: int, row: int, offset: int = 0) -> Value:
        """The address of byte `offset` of the current row + `row` of a tensor."""
        start = self.at.mul(self.at.load(self.row, typ=LONG), LONG(self.row_bytes[tensor]))
        fixed = self.begins[tensor] + row * self.row_bytes[tensor] + offset
        return self.address(self.memory, self.at.add(start, LONG(fixed)))

    def address(self, base: Value, offset: Value) -> Value:
        """So many bytes further on."""
        return self.at.gep(base, [offset], source_etype=BYTE)

    def vector(self, numbers: Numbers, row: int, t: int) -> Value:
        """Numbers 8 t, 8 t + 1, ... of a row; those beyond the last are zero, or finite if they are codes."""
        bits = numbers.bits
        byte, shift = divmod((numbers.begin + LANES * t * numbers.step) * bits, 8)
        place = self.place(numbers.tensor, row, byte)
        return self.decoded(place, shift, numbers, min(LANES, numbers.count - LANES * t))

    def decoded(self, place: Value, shift: int, numbers: Numbers, count: int) -> Value:
        """The vector whose first number begins at bit `shift` of `place`: `count` numbers."""
        at, bits = self.at, numbers.bits
        if bits in FLOATS:
            kind = ir.VectorType(ir.IntType(bits), LANES * numbers.step)
            words = at.load(place, align=1, typ=kind)
            if numbers.step > 1:
                chosen = ir.VectorType(INT, LANES)([i * numbers.step for i in range(LANES)])
                words = at.shuffle_vector(words, ir.Constant(kind, ir.Undefined), chosen)
            if bits == 16:  # bfloat16 are the upper half of a float32
                words = at.shl(at.zext(words, INTS), _all(16))
            if count < LANES:
                words = at.and_(words, INTS([-1 if i < count else 0 for i in range(LANES)]))
            return at.bitcast(words, VECTOR)
        if bits == 8:
            codes = at.zext(at.load(place, align=1, typ=ir.VectorType(BYTE, LANES)), INTS)
        else:
            word = at.load(place, align=1, typ=INT if shift + LANES * bits <= 32 else LONG)
            if shift and word.type is LONG:
                word = at.trunc(at.lshr(word, LONG(shift)), INT)
                shift = 0
            codes = at.lshr(self.splat(word), INTS([shift + bits * i for i in range(LANES)]))
            codes = at.and_(codes, _all((1 << bits) - 1))
        return at.fadd(at.sitofp(codes, VECTOR), _all(0.5 - (1 << (bits - 1))))

    def splat(self, value: Value) -> Value:
        kind = ir.VectorType(value.type, LANES)
        one = self.at.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
        return self.at.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(INTS, None))

    def add_product(self, total: Value, a: Value, b: Value) -> None:
        """To a variable, add a b."""
        product = self.at.fmul(a, b, flags=FUSED)
        self.at.store(self.at.fadd(self.at.load(total, typ=VECTOR), product, flags=FUSED), total)

    def add_scores(self, sums: Sequence[Value]) -> None:
        """Add up each row's vector, halves of two rows side by side, and that to the rows' scores: at most 8 rows."""
        zero = ir.Constant(VECTOR, None)
        rows = [self.at.load(total, typ=VECTOR) for total in sums] + [zero] * (LANES - len(sums))
        for first, second in HALVES:
            half = len(rows) // 2
            rows = [
                self.at.fadd(self.at.shuffle_vector(a, b, INTS(first)), self.at.shuffle_vector(a, b, INTS(second)))
                for a, b in zip(rows[:half], rows[half:], strict=True)
            ]
        found = self.at.shuffle_vector(rows[0], zero, ir.VectorType(INT, len(sums))(list(range(len(sums)))))
        place = self.address(self.scores, self.at.mul(self.at.load(self.row, typ=LONG), LONG(4)))
        self.at.store(self.at.fadd(self.at.load(place, align=4, typ=found.type), found), place, align=4)

    def spacing(self, row: int, group: int) -> Value:
        """The bfloat16 scale of one of a row's groups in every lane: of the second tensor, where numbers are coded."""
        word = self.at.load(self.place(1, row, 2 * group), align=1, typ=HALF)
        return self.splat(self.at.bitcast(self.at.shl(self.at.zext(word, INT), INT(16)), FLOAT))

    def factors(self, columns: Sequence[Sequence[Numbers]], rows: int, wide: int) -> None:
        """Some rows' scores: the sum over j of v[j] sum over k of query[k, j] u[k], `wide` vectors of j at a time."""
        short, long = columns[0]
        coded = short.bits not in FLOATS
        totals = [self.variable(VECTOR) for _ in range(rows)]
        scratch = self.variable(VECTOR, rows * short.vectors)  # [rows, k]: u, to be taken number by number
        for i, (u, v) in enumerate(columns):
            for row in range(rows):
                for t in range(short.vectors):
                    place = self.at.gep(scratch, [LONG(row * short.vectors + t)])
                    self.at.store(self.vector(u, row, t), place)
            parts = [self.variable(VECTOR) for _ in range(rows)] if coded else totals
            for first in range(0, long.vectors, wide):
                chosen = range(first, min(first + wide, long.vectors))
                sums = {(row, t): self.variable(VECTOR) for row in range(rows) for t in chosen}
                counter = self.variable(LONG)
                with self.repeat(counter, LONG(1), LONG(short.count)):
                    k = self.at.load(counter, typ=LONG)
                    line = self.at.mul(k, LONG(4 * LANES * long.vectors))
                    for t in chosen:
                        place = self.address(self.query, self.at.add(line, LONG(4 * LANES * t)))
                        query = self.at.load(place, align=4, typ=VECTOR)
                        for row in range(rows):
                            offset = self.at.add(self.at.mul(k, LONG(4)), LONG(4 * LANES * row * short.vectors))
                            number = self.at.load(self.address(scratch, offset), typ=FLOAT)
                            self.add_product(sums[row, t], query, self.splat(number))
                for (row, t), total in sums.items():
                    self.add_product(parts[row], self.at.load(total, typ=VECTOR), self.vector(v, row, t))
            for row in range(rows if coded else 0):
                scale = self.spacing(row, i)
                self.add_product(totals[row], self.at.load(parts[row], typ=VECTOR), self.at.fmul(scale, scale))
        self.add_scores(totals)

    def whole(self, numbers: Numbers, rows: int) -> None:
        """Some rows' scores: the sum over D of query[p] x[p]."""
        sums = [self.variable(VECTOR) for _ in range(rows)]
        full = numbers.count // LANES
        starts = [self.place(numbers.tensor, row) for row in range(rows)]
        counter = self.variable(LONG)

        def add(t: Value, count: int) -> None:
            place = self.address(self.query, self.at.mul(t, LONG(4 * LANES)))
            query = self.at.load(place, align=4, typ=VECTOR)
            for start, total in zip(starts, sums, strict=True):
                place = self.address(start, self.at.mul(t, LONG(numbers.bits)))
                self.add_product(total, query, self.decoded(place, 0, numbers, count))

        with self.repeat(counter, LONG(1), LONG(full)):
            add(self.at.load(counter, typ=LONG), LANES)
        if numbers.count % LANES:
            add(LONG(full), numbers.count % LANES)
        for row in range(0 if numbers.bits in FLOATS else rows):
            self.at.store(self.at.fmul(self.at.load(sums[row], typ=VECTOR), self.spacing(row, 0)), sums[row])
        self.add_scores(sums)


def _all(value: float) -> Value:
    kind = VECTOR if isinstance(value, float) else INTS
    return ir.Constant(kind, [value] * LANES)
