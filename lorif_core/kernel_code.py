"""What the compiled kernels have in common: one function in LLVM's language, its loops, its vectors.

A kernel is written out for one shape and codec: sizes are constants of the code, so that sums stay in registers. Axes:
L layers of the shape, Q queries, n rows, b bits of a stored number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

LANES = 8
"""Numbers of a vector: 256 bits of float32. LLVM splits them where the machine has shorter ones."""
SLACK = 4 * LANES
"""Bytes that may be read beyond the last row; whatever they hold, scores do not depend on it."""
ENTRY = "add_scores"
"""The function: (scores [Q, n], addresses [L, 1 + tensors], L, Q, n, numbers from one query's scores to the next's). A layer's
addresses are those of its queries [Q, ...] and of the first row of each of its tensors."""
LINE = 64
"""Bytes of a cache line."""
DISTANCE = 2
"""Of what is asked of memory from what is worked on, in rows scored at once: memory takes about as long to answer."""
FETCHED = 2**16
"""Bytes of the rows scored at once up to which that is asked: more would leave the cache again, and take seconds to compile."""

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
    row_bytes: tuple[int, ...]
    """Of each tensor."""
    rows: int
    """It scores at once: it reads and scores as many where fewer are left."""
    room: int
    """Bytes behind a tensor's rows that it reads for that, at most."""


class Code:
    """One function as it is written, and the row that the next lines are about."""

    def __init__(self, row_bytes: list[int], query_bytes: int, rows: int) -> None:
        """Begin it.

        Args:
            row_bytes: of each tensor.
            query_bytes: of a query.
            rows: that are scored at once, even where fewer are left.
        """
        self.module = ir.Module()
        kind = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, *[LONG] * 4])
        function = ir.Function(self.module, kind, ENTRY)
        self.all_scores, self.addresses, self.layers, self.count, self.n, self.stride = function.args
        self.entry = ir.IRBuilder(function.append_basic_block())
        self.at = ir.IRBuilder(function.append_basic_block())
        self.body = self.at.block
        self.row_bytes, self.query_bytes, self.rows = row_bytes, query_bytes, rows
        self.room = (rows - 1) * max(row_bytes) + SLACK
        self.row = self.variable(LONG)
        kind = ir.FunctionType(ir.VoidType(), [POINTER, INT, INT, INT])
        self.prefetch = ir.Function(self.module, kind, "llvm.prefetch.p0")

    def finish(self) -> Kernel:
        """The kernel."""
        self.at.ret_void()
        self.entry.branch(self.body)
        return Kernel(str(self.module), tuple(self.row_bytes), self.rows, self.room)

    @contextmanager
    def each_layer(self) -> Iterator[None]:
        """The block for each layer, at its first row."""
        layer = self.variable(LONG)
        with self.repeat(layer, 1, self.layers):
            first = self.at.mul(self.at.load(layer, typ=LONG), LONG(1 + len(self.row_bytes)))
            self.queries, *self.tensors = (
                self.at.load(
                    self.at.gep(self.addresses, [self.at.add(first, LONG(i))], source_etype=POINTER), typ=POINTER
                )
                for i in range(1 + len(self.row_bytes))
            )
            self.at.store(LONG(0), self.row)
            yield

    @contextmanager
    def each_query(self) -> Iterator[tuple[Value, Value]]:
        """The block for each query: the addresses of (itself, its score of the current row)."""
        q = self.variable(LONG)
        self.at.store(LONG(0), q)
        with self.repeat(q, 1, self.count):
            number = self.at.load(q, typ=LONG)
            line = self.at.add(self.at.mul(number, self.stride), self.at.load(self.row, typ=LONG))
            query = self.address(self.queries, self.at.mul(number, LONG(self.query_bytes)))
            yield query, self.address(self.all_scores, self.at.mul(line, LONG(4)))

    def fetch(self, tensor: int, rows: int, offset: Value, size: int) -> None:
        """Ask memory for `size` bytes, from `offset` on, of the rows that come soon, where `rows` are scored at once."""
        if rows * self.row_bytes[tensor] > FETCHED:
            return
        for line in range(0, size, LINE):
            place = self.address(self.place(tensor, DISTANCE * rows, line), offset)
            self.at.call(self.prefetch, [place, INT(0), INT(3), INT(1)])  # to read, often, data

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
        return self.address(self.tensors[tensor], self.at.add(start, LONG(row * self.row_bytes[tensor] + offset)))

    def address(self, base: Value, offset: Value) -> Value:
        """So many bytes further on."""
        return self.at.gep(base, [offset], source_etype=BYTE)

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
