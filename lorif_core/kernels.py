"""Compiled scoring of few queries, where numba is installed: decoding and contraction fused, block by block in cache.

The only module that knows numba, imported when it is first needed; without it `lorif_core.scoring` gives the same scores
with torch alone, more slowly. Nothing is compiled at installation: the first use does it, and keeps it where numba can
write its cache.

Axes: Q queries, n rows, c factor rank, T rows of a tile, k the shorter projected side (padded to K, a multiple of 4),
j the longer one, D = d1 d2, b bits of a code, 8 / b codes of a byte.

Rows of a tile are decoded to float32 with the row as the last axis, so that every inner loop runs over rows: one
multiply-add for each number of the query and row, whatever the sides.
"""

# mypy sees plain functions: numba compiles them as they are.

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorif_core.codecs import FLOATS
from lorif_core.manifest import LayerEntry

log = logging.getLogger(__name__)

FEW_QUERIES = 12
"""Up to here these kernels are faster than a dense product for all queries at once."""
TILE = 128
Array = Any
"""A numpy array; numba has no use for finer types."""


def available() -> bool:
    """Whether numba is installed."""
    return _compiled() is not None


def prepare(layer: LayerEntry, bits: int, queries: Tensor) -> Array:
    """Queries [Q, d1, d2] in the order the kernels want: float32 [Q, j, K], or [Q, 8 / b, bytes] for whole gradients."""
    if layer.rank:
        longer_first = queries.mT if layer.d1 <= layer.d2 else queries
        short = longer_first.shape[2]
        return torch.nn.functional.pad(longer_first, (0, -short % 4)).contiguous().numpy()
    flat = queries.flatten(1)
    each = 8 // bits if bits < 16 else 1
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % each))
    return flat.unflatten(1, (-1, each)).mT.contiguous().numpy()


def add_scores(layer: LayerEntry, bits: int, read: Callable[[str], Tensor], queries: Array, scores: Array) -> None:
    """Add <Q_q, G_i> of some rows.

    Args:
        layer: as the manifest has it.
        bits: of a stored number.
        read: gives those rows of one of the tensors of `codecs.encode`.
        queries: of `prepare`.
        scores: float32 [Q, n], contiguous, added to.
    """
    compiled = _compiled()
    assert compiled is not None  # the caller has asked
    sides, whole, coded, coded_whole = compiled

    def array(name: str) -> Array:
        tensor = read(name).flatten(1)
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(np.uint16)
        return tensor.numpy() if tensor.dtype == torch.uint8 else tensor.numpy().view(np.uint32)

    if layer.rank and bits in FLOATS:
        names = ("left", "right") if layer.d1 <= layer.d2 else ("right", "left")
        sides(array(names[0]), array(names[1]), layer.rank, queries, scores)
    elif layer.rank:
        scale = read("scale").float().numpy()
        coded(array("codes"), scale, bits, layer.d1, layer.d2, queries, scores)
    elif bits in FLOATS:
        whole(array("gradient"), queries, scores)
    else:
        scale = read("scale").float().flatten().numpy()
        coded_whole(array("codes"), scale, bits, queries, scores)


@cache
def _compiled() -> tuple[Callable[..., None], ...] | None:
    """The kernels, each compiled at its first call; None without numba."""
    try:
        import numba
    except ImportError:
        return None
    begin = time.perf_counter()
    numba.extending.register_jitable(fastmath=True)(_decode)
    numba.extending.register_jitable(fastmath=True)(_contract)
    numba.extending.register_jitable(fastmath=True)(_decode_codes)

    def compile_(function: Callable[..., None]) -> Callable[..., None]:
        try:
            return numba.njit(function, nogil=True, fastmath=True, cache=True)  # type: ignore[no-any-return]
        except RuntimeError:  # no folder to keep it in
            return numba.njit(function, nogil=True, fastmath=True)  # type: ignore[no-any-return]

    found = tuple(compile_(function) for function in (_sides, _whole, _coded, _coded_whole))
    log.debug("kernels ready in %.2f s", time.perf_counter() - begin)
    return found


def _sides(short: Array, long: Array, rank: int, queries: Array, scores: Array) -> None:
    """Rows of factors: short [n, k c], long [n, j c] as uint16 (bfloat16) or uint32 (float32)."""
    n, padded, j = short.shape[0], queries.shape[2], long.shape[1] // rank
    u_bits, v_bits = np.zeros((rank * padded, TILE), np.uint32), np.zeros((rank * j, TILE), np.uint32)
    u, v = u_bits.view(np.float32), v_bits.view(np.float32)
    for first in range(0, n, TILE):
        rows = min(TILE, n - first)
        _decode(short, first, rows, rank, padded, u_bits)
        _decode(long, first, rows, rank, j, v_bits)
        for q in range(queries.shape[0]):
            for i in range(rank):
                _contract(
                    queries[q],
                    u[i * padded : (i + 1) * padded],
                    v[i * j : (i + 1) * j],
                    scores[q, first : first + rows],
                )


def _decode(stored: Array, first: int, rows: int, rank: int, padded: int, out: Array) -> None:
    """Rows first, first + 1, ... of [n, numbers] to the bits of float32 [c padded, T]: bfloat16 are the upper 16."""
    numbers = stored.shape[1]
    if stored.itemsize == 4:
        for p in range(numbers):
            row = out[(p % rank) * padded + p // rank]
            for r in range(rows):
                row[r] = stored[first + r, p]
    elif numbers % 4:
        for p in range(numbers):
            row = out[(p % rank) * padded + p // rank]
            for r in range(rows):
                row[r] = np.uint32(stored[first + r, p]) << np.uint32(16)
    else:  # four numbers a load, taken apart where they lie side by side
        words = stored.view(np.uint64)
        low, high = np.empty(TILE, np.uint32), np.empty(TILE, np.uint32)
        for p in range(0, numbers, 4):
            for r in range(rows):
                word = words[first + r, p // 4]
                low[r], high[r] = np.uint32(word), np.uint32(word >> np.uint64(32))
            a, b, c, d = p, p + 1, p + 2, p + 3
            row_a, row_b = out[(a % rank) * padded + a // rank], out[(b % rank) * padded + b // rank]
            row_c, row_d = out[(c % rank) * padded + c // rank], out[(d % rank) * padded + d // rank]
            for r in range(rows):
                row_a[r] = low[r] << np.uint32(16)
            for r in range(rows):
                row_b[r] = low[r] & np.uint32(0xFFFF0000)
            for r in range(rows):
                row_c[r] = high[r] << np.uint32(16)
            for r in range(rows):
                row_d[r] = high[r] & np.uint32(0xFFFF0000)


def _contract(query: Array, u: Array, v: Array, scores: Array) -> None:
    """Add to scores [n] the sum over j of v[j] sum over k of query[j, k] u[k], with u [K, T], v [j, T]; K is a multiple of 4.

    As many rows of u at once as leave registers for their numbers of the query: 12, then 4.
    """
    n, k = len(scores), 0
    while k + 12 <= len(u):
        u0, u1, u2, u3, u4, u5 = u[k], u[k + 1], u[k + 2], u[k + 3], u[k + 4], u[k + 5]
        u6, u7, u8, u9, u10, u11 = u[k + 6], u[k + 7], u[k + 8], u[k + 9], u[k + 10], u[k + 11]
        for j in range(len(v)):
            a, w = query[j], v[j]
            a0, a1, a2, a3, a4, a5 = a[k], a[k + 1], a[k + 2], a[k + 3], a[k + 4], a[k + 5]
            a6, a7, a8, a9, a10, a11 = a[k + 6], a[k + 7], a[k + 8], a[k + 9], a[k + 10], a[k + 11]
            for r in range(n):
                t = a0 * u0[r] + a1 * u1[r] + a2 * u2[r] + a3 * u3[r] + a4 * u4[r] + a5 * u5[r]
                t += a6 * u6[r] + a7 * u7[r] + a8 * u8[r] + a9 * u9[r] + a10 * u10[r] + a11 * u11[r]
                scores[r] += w[r] * t
        k += 12
    while k < len(u):
        u0, u1, u2, u3 = u[k], u[k + 1], u[k + 2], u[k + 3]
        for j in range(len(v)):
            a, w = query[j], v[j]
            a0, a1, a2, a3 = a[k], a[k + 1], a[k + 2], a[k + 3]
            for r in range(n):
                scores[r] += w[r] * (a0 * u0[r] + a1 * u1[r] + a2 * u2[r] + a3 * u3[r])
        k += 4


def _coded(codes: Array, scale: Array, bits: int, left: int, right: int, queries: Array, scores: Array) -> None:
    """Rows of coded factors: codes [n, c bytes] uint8 of u and v joined, scale [n, c]."""
    n, rank = scale.shape
    size = codes.shape[1] // rank  # bytes of a group
    padded, long = queries.shape[2], queries.shape[1]
    sides = np.zeros((padded + long, TILE), np.float32)  # the shorter side, padded, then the longer one
    part, spacing = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    begin_left, begin_right = (0, padded) if left <= right else (padded, 0)
    for first in range(0, n, TILE):
        rows = min(TILE, n - first)
        for i in range(rank):
            spacing[:rows] = scale[first : first + rows, i]
            group = codes[first : first + rows]
            if size % 4 == 0:  # as many codes a load as the rows' length allows
                _decode_codes(group.view(np.uint32), i * size // 4, bits, left, right, begin_left, begin_right, sides)
            elif size % 2 == 0:
                _decode_codes(group.view(np.uint16), i * size // 2, bits, left, right, begin_left, begin_right, sides)
            else:
                _decode_codes(group, i * size, bits, left, right, begin_left, begin_right, sides)
            for number in range(begin_left, begin_left + left):
                sides[number, :rows] *= spacing[:rows]
            for q in range(queries.shape[0]):
                part[:rows] = 0
                _contract(queries[q], sides[:padded], sides[padded:], part[:rows])
                scores[q, first : first + rows] += part[:rows] * spacing[:rows]


def _decode_codes(
    words: Array, first: int, bits: int, left: int, right: int, begin_left: int, begin_right: int, sides: Array
) -> None:
    """One group of a tile: words [T, ...] from column `first` on to levels, u at `begin_left`, v at `begin_right`."""
    each = 8 * words.itemsize // bits
    mask, half = np.uint32((1 << bits) - 1), np.float32(0.5 - (1 << (bits - 1)))
    column = np.zeros(TILE, np.uint32)
    rows = len(words)
    for start in range(0, left + right, each):
        for r in range(rows):
            column[r] = words[r, first + start // each]
        for number in range(start, min(start + each, left + right)):
            side = sides[begin_left + number] if number < left else sides[begin_right + number - left]
            shift = np.uint32((number - start) * bits)
            for r in range(rows):
                side[r] = np.float32(np.int32((column[r] >> shift) & mask)) + half


def _whole(stored: Array, queries: Array, scores: Array) -> None:
    """Rows of whole gradients [n, D] as uint16 (bfloat16) or uint32 (float32); queries [Q, 1, D]."""
    shift = np.uint32(32 - 8 * stored.itemsize)
    row_bits = np.empty(stored.shape[1], np.uint32)
    row = row_bits.view(np.float32)
    for r in range(len(stored)):
        for p in range(len(row)):
            row_bits[p] = np.uint32(stored[r, p]) << shift
        for q in range(len(queries)):
            query, total = queries[q, 0], np.float32(0)
            for p in range(len(row)):
                total += query[p] * row[p]
            scores[q, r] += total


def _coded_whole(codes: Array, scale: Array, bits: int, queries: Array, scores: Array) -> None:
    """Rows of coded whole gradients: codes [n, bytes] uint8, scale [n]; queries [Q, 8 / b, bytes]."""
    half = np.float32(0.5 - (1 << (bits - 1)))
    for q in range(len(queries)):
        a = queries[q]
        last = len(a) - 1
        a0, a1, a2, a3 = a[0], a[min(1, last)], a[min(2, last)], a[min(3, last)]
        a4, a5, a6, a7 = a[min(4, last)], a[min(5, last)], a[min(6, last)], a[min(7, last)]
        for r in range(len(codes)):
            row, total = codes[r], np.float32(0)
            if bits == 8:
                for p in range(len(row)):
                    total += a0[p] * (np.float32(row[p]) + half)
            elif bits == 4:
                for p in range(len(row)):
                    w = np.int32(row[p])
                    total += a0[p] * (np.float32(w & 15) + half) + a1[p] * (np.float32((w >> 4) & 15) + half)
            elif bits == 2:
                for p in range(len(row)):
                    w = np.int32(row[p])
                    total += a0[p] * (np.float32(w & 3) + half) + a1[p] * (np.float32((w >> 2) & 3) + half)
                    total += a2[p] * (np.float32((w >> 4) & 3) + half) + a3[p] * (np.float32((w >> 6) & 3) + half)
            else:
                for p in range(len(row)):
                    w = np.int32(row[p])
                    total += a0[p] * (np.float32(w & 1) + half) + a1[p] * (np.float32((w >> 1) & 1) + half)
                    total += a2[p] * (np.float32((w >> 2) & 1) + half) + a3[p] * (np.float32((w >> 3) & 1) + half)
                    total += a4[p] * (np.float32((w >> 4) & 1) + half) + a5[p] * (np.float32((w >> 5) & 1) + half)
                    total += a6[p] * (np.float32((w >> 6) & 1) + half) + a7[p] * (np.float32((w >> 7) & 1) + half)
            scores[q, r] += total * scale[r]
