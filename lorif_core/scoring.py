"""Scores of queries against a streamed index.

Axes: Q queries, N training examples, n rows of a block, D = d1 d2 a layer's flattened gradient, k best kept.

score(q, i) = sum over layers <H^-1 g_q, G_i>, G_i as stored, the query's gradient whole, never factored. A layer with N >= D has
its query preconditioned beforehand; one with N < D has the plain dot products <g_q, G_i> of all rows, few as they
are, turned into scores (`lorif_core.inverse`).
POSITIVE = proponent: training on i lowers q's measure; removing it raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorif_core.inverse import DualInverse, LayerInverse
from lorif_core.manifest import LayerEntry
from lorif_core.store import FactorStore

BLOCK_NUMBERS = 2**23
"""Floats of the largest temporary: 32 MB."""

Queries = dict[str, Tensor]
"""Per layer, query gradients [Q, d1, d2], float32; preconditioned for a `PrimalInverse`."""
Inverses = Mapping[str, LayerInverse]


class TopK(NamedTuple):
    """The strongest training examples of each query, best first."""

    indices: Tensor
    """int64 [Q, k]: positions in the index."""
    scores: Tensor
    """float32 [Q, k]."""


def stream_scores(
    store: FactorStore,
    layers: Sequence[LayerEntry],
    queries: Queries,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Tensor]]:
    """(first row, dot products summed over `layers` [Q, n]) of consecutive blocks; memory is one block, whatever N is."""
    count = len(next(iter(queries.values())))
    rows = max(1, BLOCK_NUMBERS // max(*(layer.size for layer in layers), count))
    for blocks in zip(*(store.blocks(layer.name, rows) for layer in layers), strict=True):
        total = torch.zeros(count, len(blocks[0]), device=device, dtype=dtype)
        for layer, block in zip(layers, blocks, strict=True):
            total += block.products(queries[layer.name].to(device, dtype))
        yield blocks[0].start, total


def all_scores(
    store: FactorStore, queries: Queries, inverses: Inverses, device: torch.device, progress: Callable[[int], None]
) -> Tensor:
    """The whole table [Q, N], float32, on the CPU."""
    count, layers = len(next(iter(queries.values()))), store.manifest.layers
    table = torch.zeros(count, len(store))
    primal = [layer for layer in layers if not isinstance(inverses[layer.name], DualInverse)]
    if primal:
        for start, part in stream_scores(store, primal, queries, device):
            table[:, start : start + part.shape[1]] = part.cpu()
            progress((start + part.shape[1]) * len(primal) // len(layers))
    done = len(primal)
    for layer in layers:
        inverse = inverses[layer.name]
        if isinstance(inverse, DualInverse):
            parts = [part for _, part in stream_scores(store, [layer], queries, device, inverse.weights.dtype)]
            table += inverse.scores(torch.cat(parts, 1)).cpu()
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
    count, k = len(next(iter(queries.values()))), min(k, len(store))
    if any(isinstance(inverse, DualInverse) for inverse in inverses.values()):
        scores, indices = all_scores(store, queries, inverses, device, progress).topk(k, 1, largest=largest)
        return TopK(indices, scores)
    scores, indices = torch.empty(count, 0, device=device), torch.empty(count, 0, dtype=torch.int64, device=device)
    for start, part in stream_scores(store, store.manifest.layers, queries, device):
        rows = torch.arange(start, start + part.shape[1], device=device).expand(count, -1)
        scores, indices = torch.cat([scores, part], 1), torch.cat([indices, rows], 1)
        scores, order = scores.topk(min(k, scores.shape[1]), 1, largest=largest)
        indices = indices.gather(1, order)
        progress(start + part.shape[1])
    return TopK(indices.cpu(), scores.cpu())


def self_influence(
    store: FactorStore, inverses: Inverses, device: torch.device, progress: Callable[[int], None]
) -> Tensor:
    """g_i^T H^-1 g_i of every stored example [N], float32, >= 0."""
    total = torch.zeros(len(store), device=device)
    for number, layer in enumerate(store.manifest.layers):
        inverse = inverses[layer.name]
        if isinstance(inverse, DualInverse):
            total += inverse.self_influence()
        else:
            for block in store.blocks(layer.name, max(1, BLOCK_NUMBERS // layer.size)):
                part = inverse.quadratic(block.dense(device))
                total[block.start : block.start + len(part)] += part
        progress(number + 1)
    return total.cpu()
