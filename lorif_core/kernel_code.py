"""What the compiled kernels have in common: one function in LLVM's language, its loops, its reading, its vectors.

A kernel is written out for one shape and codec: sizes are constants of the code, so that sums stay in registers. The code
reads the file itself, as much at a time as stays in a core's cache. Axes: Q queries, n rows, b bits of a stored number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

LANES = 8
"""Numbers of a vector: 256 bits of float32. LLVM splits them where the machine has shorter ones."""
SLACK = 1024
"""Bytes that may be read beyond the last row; whatever they hold, scores do not depend on it."""
LINE = 64
"""Bytes of a cache line. What is read goes to the beginning of one: elsewhere the operating system copies at a fifth of the
speed on some processors."""
ENTRY = "add_scores"
"""The function: (scores [Q, n], queries [Q, ...], memory, file descriptor, where the first rows of each tensor begin in the
file, Q, n, numbers from one query's scores to the next's) -> rows that were read, fewer than n where the file ends too
early."""

BYTE, HALF, INT, LONG, FLOAT = (*(ir.IntType(size) for size in (8, 16, 32, 64)), ir.FloatType())
POINTER = ir.PointerType()
INTS, VECTOR = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)
ZEROS = ir.Constant(VECTOR, None)
FUSED = ("contract",)
"""A product and a sum may be one instruction."""
Value = Any
"""Of `llvmlite.ir`, which has no types."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's code."""

    text: str
    memory: int
    """Bytes it reads to."""
    rows: int
    """It scores at once: there is room for as many, in the scores and in its memory, where fewer are left."""


class Code:
    """One function as it is written, and the row that the next lines are about."""

    def __init__(self, row_bytes: list[int], query_bytes: int, together: int, chunk: int) -> None:
        """Begin it.

        Args:
            row_bytes: of each tensor.
            query_bytes: of a query.
            together: rows that are scored at once, where as many are left.
            chunk: bytes to read at a time, about.
        """
        self.module = ir.Module()
        kind = ir.FunctionType(LONG, [POINTER, POINTER, POINTER, INT, *[LONG] * len(row_bytes), LONG, LONG, LONG])
        function = ir.Function(self.module, kind, ENTRY)
        self.all_scores, self.queries, self.memory, self.file, *self.offsets, self.count, self.n, self.stride = (
            function.args
        )
        self.entry = ir.IRBuilder(function.append_basic_block())
        self.at = ir.IRBuilder(function.append_basic_block())
        self.body = self.at.block
        self.row_bytes, self.query_bytes = row_bytes, query_bytes
        self.chunk = max(chunk // sum(row_bytes) // together, 1) * together  # rows
        self.begins = [0]
        for size in row_bytes:
            self.begins.append(self.begins[-1] + -(-(size * self.chunk + SLACK) // LINE) * LINE)
        self.row = self.variable(LONG)

    def finish(self, rows: int) -> Kernel:
        """The kernel, which scores so many rows at once."""
        self.at.ret(self.n)
        self.entry.branch(self.body)
        return Kernel(str(self.module), self.begins[-1], rows)

    @contextmanager
    def chunks(self) -> Iterator[tuple[Value, Value]]:
        """The block for each chunk of rows, in memory: (its first row, how many they are)."""
        first = self.variable(LONG)
        with self.repeat(first, self.chunk, self.n, whole=False):
            start = self.at.load(first, typ=LONG)
            left = self.at.sub(self.n, start)
            rows = self.at.select(self.at.icmp_signed("<", left, LONG(self.chunk)), left, LONG(self.chunk))
            self.read(start, rows)
            self.at.store(LONG(0), self.row)
            yield start, rows

    @contextmanager
    def each_query(self, start: Value) -> Iterator[tuple[Value, Value]]:
        """The block for each query: the addresses of (itself, its score of row `start`)."""
        q = self.variable(LONG)
        self.at.store(LONG(0), q)
        with self.repeat(q, 1, self.count):
            number = self.at.load(q, typ=LONG)
            line = self.at.add(self.at.mul(number, self.stride), start)
            query = self.address(self.queries, self.at.mul(number, LONG(self.query_bytes)))
            yield query, self.address(self.all_scores, self.at.mul(line, LONG(4)))

    def read(self, start: Value, rows: Value) -> None:
        """Read rows start, start + 1, ... of every tensor; return where the file ends before them."""
        kind = ir.FunctionType(LONG, [INT, POINTER, LONG, LONG])
        pread = ir.Function(self.module, kind, "pread")
        for offset, size, begin in zip(self.offsets, self.row_bytes, self.begins, strict=False):
            wanted = self.at.mul(rows, LONG(size))
            place = self.at.add(offset, self.at.mul(start, LONG(size)))
            found = self.at.call(pread, [self.file, self.address(self.memory, LONG(begin)), wanted, place])
            with self.at.if_then(self.at.icmp_signed("!=", found, wanted), likely=False):
                self.at.ret(start)

    def variable(self, kind: Any, count: int = 1) -> Value:
        """Zero; registers hold it after optimisation, except for arrays, which hold anything."""
        place = self.entry.alloca(kind, count)
        if count == 1:
            self.entry.store(ir.Constant(kind, None), place)
        return place

    @contextmanager
    def repeat(self, counter: Value, step: int, stop: Value | int, whole: bool = True) -> Iterator[None]:
        """The block while a step (`whole`), or any of it, is left before `stop`; the counter goes up by it."""
        function, stop = self.at.function, LONG(stop) if isinstance(stop, int) else stop
        test, body, after = (function.append_basic_block() for _ in range(3))
        self.at.branch(test)
        self.at.position_at_end(test)
        now = self.at.load(counter, typ=LONG)
        following = self.at.add(now, LONG(step))
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

    def levels(self, codes: Value, bits: int) -> Value:
        """What codes of so few bits stand for, in units of their scale."""
        return self.at.fadd(self.at.sitofp(codes, VECTOR), every(0.5 - (1 << (bits - 1))))

    def splat(self, value: Value) -> Value:
        """It in every lane."""
        kind = ir.VectorType(value.type, LANES)
        one = self.at.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
        return self.at.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(INTS, None))

    def add_product(self, total: Value, a: Value, b: Value) -> None:
        """To a variable, add a b."""
        product = self.at.fmul(a, b, flags=FUSED)
        self.at.store(self.at.fadd(self.at.load(total, typ=VECTOR), product, flags=FUSED), total)


def every(value: float) -> Value:
    """A constant vector."""
    kind = VECTOR if isinstance(value, float) else INTS
    return ir.Constant(kind, [value] * LANES)
