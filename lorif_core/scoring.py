"""Scores of queries against a streamed index.

Axes: Q queries, N training examples, n rows of a block, D = d1 d2 a layer's flattened gradient, k best kept.

score(q, i) = sum over layers <H^-1 g_q, G_i>, G_i as stored, the query's gradient whole, never factored. A layer with N >= D has
its queries preconditioned beforehand, or its rows, block by block, where they are fewer than the queries; one with N < D
has the plain dot products <g_q, G_i> of all rows, few as they are, turned into scores (`lorif_core.inverse`).
POSITIVE = proponent: training on i lowers q's measure; removing it raises it.

The shards are read once, in order, the next one ahead of time; blocks of rows, small enough to stay in cache, are decoded
and contracted side by side (`lorif_core.threads`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lorif_core import kernels
from lorif_core.blocks import FEW_QUERIES
from lorif_core.inverse import FromProducts, LayerInverse, PrimalInverse
from lorif_core.manifest import LayerEntry
from lorif_core.shards import stream
from lorif_core.store import FactorStore
from lorif_core.threads import workers
from lorif_core.windows import Window, window_rows, windows

log = logging.getLogger(__name__)

BLOCK_NUMBERS = 2**23
"""Floats of the largest temporary: 32 MB."""
CACHE_NUMBERS = 2**19
"""Floats of a block that stays in a core's cache: 2 MB. A product of fewer than `LEAST_ROWS` rows is slower than memory."""
LEAST_ROWS = 64
KERNEL_NUMBERS = 2**27
"""Stored numbers of an index from which compiling kernels, seconds at their first use, is worth it."""

Inverses = Mapping[str, LayerInverse]


@dataclass(frozen=True)
class Queries:
    """Per layer, query gradients [Q, d1, d2], float32."""

    gradients: dict[str, Tensor]
    preconditioned: bool
    """Whether each layer's `PrimalInverse` was applied to them; if not, it is applied to the training rows."""

    def __len__(self) -> int:
        """Q."""
        return len(next(iter(self.gradients.values())))


class TopK(NamedTuple):
    """The strongest training examples of each query, best first."""

    indices: Tensor
    """int64 [Q, k]: positions in the index."""
    scores: Tensor
    """float32 [Q, k]."""


def prepared(gradients: dict[str, Tensor], inverses: Inverses, examples: int) -> Queries:
    """Queries ready to be compared with the index: preconditioned, unless there are fewer training rows to precondition.

    Both cost 4 D r a row or query and layer.
    """
    count = len(next(iter(gradients.values())))
    if count > examples:
        log.info("preconditioning %d training rows, fewer than the %d queries", examples, count)
        return Queries(gradients, preconditioned=False)
    log.info("preconditioning %d queries, no more than the %d training rows", count, examples)

    def apply(name: str, gradient: Tensor) -> Tensor:
        inverse = inverses[name]
        if isinstance(inverse, FromProducts):
            return gradient
        return inverse.precondition(gradient.flatten(1)).view_as(gradient)

    return Queries({name: apply(name, gradient) for name, gradient in gradients.items()}, preconditioned=True)


@dataclass(frozen=True)
class _Layer:
    """One layer of the index, and what its rows are contracted with."""

    entry: LayerEntry
    bits: int
    queries: Tensor
    inverse: PrimalInverse | None
    """Applied to the rows, where the queries were not preconditioned."""

    @property
    def rows(self) -> int:
        """Of a block."""
        factored = self.entry.rank and self.inverse is None and len(self.queries) <= FEW_QUERIES
        numbers = self.entry.numbers if factored else self.entry.size
        return max(1, min(BLOCK_NUMBERS // numbers, max(LEAST_ROWS, CACHE_NUMBERS // numbers)))

    def add_scores(self, window: Window, total: Tensor) -> None:
        """Add the products of a window's rows to `total` [Q, n]."""
        for block in window.blocks(self.entry, self.rows, self.bits):
            first = block.start - window.start
            scores = total[:, first : first + len(block)]
            if self.inverse is None:
                block.add_products(self.queries, scores)
            else:
                applied = self.inverse.precondition(block.dense(self.queries.device))
                scores.addmm_(self.queries.flatten(1), applied.T)  # [Q, D] @ [D, n] -> [Q, n]


@dataclass(frozen=True)
class _Compiled:
    """The layers that kernels contract."""

    kernels: Sequence[kernels.Kernel]

    @property
    def rows(self) -> int:
        """They score at once: behind each query's scores there is room up to a multiple."""
        return max((kernel.rows for kernel in self.kernels), default=1)

    def add_scores(self, window: Window, total: Tensor) -> None:
        """Add the products of a window's rows to `total` [Q, n]."""
        for shard, begin, end in window.parts(window.start, window.stop) if self.kernels else ():
            first = shard.entry.start + begin - window.start
            scores = part = total[:, first : first + end - begin]
            if end - begin < len(window):  # behind a part's scores lie the next one's: no room
                part = scores.new_zeros(len(scores), end - begin + self.rows)[:, : end - begin].copy_(scores)
            for kernel in self.kernels:
                kernel.add_scores(shard, begin, part)
            if part is not scores:
                scores.copy_(part)


def _plan(
    store: FactorStore, layers: Sequence[LayerEntry], queries: Queries, inverses: Inverses, where: Tensor
) -> tuple[_Compiled, list[_Layer]]:
    """What contracts the layers on the device and in the precision of `where`: kernels, and what has none."""
    bits = store.manifest.bits
    gradients = {layer.name: queries.gradients[layer.name].to(where) for layer in layers}
    worth = (
        queries.preconditioned
        and where.device.type == "cpu"
        and where.dtype == torch.float32
        and len(store) * sum(layer.numbers for layer in layers) >= KERNEL_NUMBERS
        and kernels.available()
    )
    count = len(queries)
    suited = {layer.name for layer in layers if worth and kernels.suits(layer, count)}

    def plan(layer: LayerEntry) -> _Layer:
        inverse = inverses[layer.name]
        on_rows = not queries.preconditioned and isinstance(inverse, PrimalInverse)
        return _Layer(layer, bits, gradients[layer.name], inverse if on_rows else None)  # type: ignore[arg-type]

    compiled = [layer for layer in layers if layer.name in suited]
    others = [plan(layer) for layer in layers if layer.name not in suited]
    return _Compiled(kernels.prepare(compiled, bits, gradients) if compiled else ()), others


def stream_scores(
    store: FactorStore, layers: Sequence[LayerEntry], queries: Queries, inverses: Inverses, where: Tensor
) -> Generator[tuple[int, Tensor]]:
    """(first row, products summed over `layers` [Q, n]) of consecutive rows; memory is some shards and blocks, whatever N.

    Args:
        store: the index.
        layers: some of its layers.
        queries: theirs.
        inverses: applied to rows where the queries are not preconditioned.
        where: a tensor of the device and precision to compute on and in.
    """
    compiled, others = _plan(store, layers, queries, inverses, where)
    rows = max(1, min(window_rows(store), BLOCK_NUMBERS // len(queries)))

    def score(window: Window) -> tuple[int, Tensor]:
        n = len(window)
        total = where.new_zeros(len(queries), -(-n // compiled.rows) * compiled.rows)[:, :n]
        compiled.add_scores(window, total)
        for layer in others:
            layer.add_scores(window, total)
        return window.start, total

    with (
        workers(where.device) as pool,
        closing(windows(store, rows)) as parts,
        closing(pool.map(score, parts)) as found,
    ):
        yield from found


def streamed(
    store: FactorStore, queries: Queries, inverses: Inverses, device: torch.device
) -> Generator[tuple[int, Tensor]]:
    """(first row, scores float32 [Q, n]) of consecutive rows, whatever the inverses' forms; close it, or exhaust it.

    Where a layer's scores follow from the dot products with all rows, which are few then, they come as one part.
    """
    if any(isinstance(inverse, FromProducts) for inverse in inverses.values()):
        yield 0, all_scores(store, queries, inverses, device, lambda done: None)
    else:
        where = torch.zeros(0, device=device)
        with closing(stream_scores(store, store.manifest.layers, queries, inverses, where)) as parts:
            yield from parts


def all_scores(
    store: FactorStore, queries: Queries, inverses: Inverses, device: torch.device, progress: Callable[[int], None]
) -> Tensor:
    """The whole table [Q, N], float32, on the CPU."""
    layers, where = store.manifest.layers, torch.zeros(0, device=device)
    table = torch.zeros(len(queries), len(store))
    primal = [layer for layer in layers if not isinstance(inverses[layer.name], FromProducts)]
    if primal:
        with closing(stream_scores(store, primal, queries, inverses, where)) as parts:
            for start, part in parts:
                table[:, start : start + part.shape[1]] = part.cpu()
                progress((start + part.shape[1]) * len(primal) // len(layers))
    done = len(primal)
    for layer in layers:
        inverse = inverses[layer.name]
        if isinstance(inverse, FromProducts):
            with closing(stream_scores(store, [layer], queries, inverses, where.to(inverse.dtype))) as parts:
                table += inverse.scores(torch.cat([part for _, part in parts], 1)).cpu()
            done += 1
            progress(len(store) * done // len(layers))
    return table


def top_k(
    store: FactorStore,
    queries: Queries,
    inverses: Inverses,
    k: int,
    largest: bool,
    device: torch.device,
    progress: Callable[[int], None],
) -> TopK:
    """The k largest (or smallest) scores of each query, merged block by block; never the whole table of a large index."""
    count, k = len(queries), min(k, len(store))
    if any(isinstance(inverse, FromProducts) for inverse in inverses.values()):
        scores, indices = all_scores(store, queries, inverses, device, progress).topk(k, 1, largest=largest)
        return TopK(indices, scores)
    scores, indices = torch.empty(count, 0, device=device), torch.empty(count, 0, dtype=torch.int64, device=device)
    with closing(stream_scores(store, store.manifest.layers, queries, inverses, scores)) as parts:
        for start, part in parts:
            best, order = part.topk(min(k, part.shape[1]), 1, largest=largest)
            scores, indices = torch.cat([scores, best], 1), torch.cat([indices, order + start], 1)
            scores, order = scores.topk(min(k, scores.shape[1]), 1, largest=largest)
            indices = indices.gather(1, order)
            progress(start + part.shape[1])
    return TopK(indices.cpu(), scores.cpu())


def self_influence(
    store: FactorStore, inverses: Inverses, device: torch.device, progress: Callable[[int], None]
) -> Tensor:
    """g_i^T H^-1 g_i of every stored example [N], float32, >= 0."""
    layers, bits = store.manifest.layers, store.manifest.bits
    total = torch.zeros(len(store), device=device)
    for inverse in inverses.values():
        if isinstance(inverse, FromProducts):
            total += inverse.self_influence()
    primal = {name: inverse for name, inverse in inverses.items() if isinstance(inverse, PrimalInverse)}
    with closing(stream(store)) as shards:
        for shard in shards if primal else ():
            for layer in layers:
                if layer.name in primal:
                    for block in shard.blocks(layer, max(1, BLOCK_NUMBERS // layer.size), bits):
                        part = primal[layer.name].quadratic(block.dense(device))
                        total[block.start : block.start + len(part)] += part
            progress(len(layers) * (shard.entry.start + len(shard)) // len(store))
    if not primal:
        progress(len(layers))
    return total.cpu()
