"""Scores of preconditioned queries against a streamed index.

Axes: Q queries, N training examples, n rows of a block, D = d1 d2 a layer's flattened gradient, k best kept.

score(q, i) = sum over layers <H^-1 g_q, U_i V_i^T>, the query's gradient whole, never factored.
POSITIVE = proponent: training on i lowers q's measure; removing it raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lorif_core.curvature import LayerCurvature
from lorif_core.store import Block, FactorStore

BLOCK_NUMBERS = 2**23
"""Floats of the largest temporary: 32 MB."""
FEW_QUERIES = 8
"""Up to here the query is contracted with both factors in turn; above, a block is made dense once for all queries."""

Queries = dict[str, Tensor]
"""Per layer, preconditioned query gradients [Q, d1, d2], float32."""


class TopK(NamedTuple):
    """The strongest training examples of each query, best first."""

    indices: Tensor
    """int64 [Q, k]: positions in the index."""
    scores: Tensor
    """float32 [Q, k]."""


def stream_scores(store: FactorStore, queries: Queries, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """(first row, scores [Q, n]) of consecutive blocks of the index; memory is one block, whatever N is."""
    layers = store.manifest.layers
    largest = max(layer.size for layer in layers)
    count = len(next(iter(queries.values())))
    rows = max(1, BLOCK_NUMBERS // max(largest, count))
    for blocks in zip(*(store.blocks(layer.name, rows) for layer in layers), strict=True):
        total = torch.zeros(count, len(blocks[0].left), device=device)
        for layer, block in zip(layers, blocks, strict=True):
            total += block_scores(queries[layer.name], block, device)
        yield blocks[0].start, total


def block_scores(queries: Tensor, block: Block, device: torch.device) -> Tensor:
    """<Q_q, U_i V_i^T> [Q, n] of one layer's preconditioned queries [Q, d1, d2] and one block."""
    if len(queries) > FEW_QUERIES:
        return queries.flatten(1) @ block.dense(device).T  # [Q, D] @ [D, n] -> [Q, n]
    left, right = (
        block.left.to(device, torch.float32),
        block.right.to(device, torch.float32).mT,
    )  # [n, d1, c], [n, c, d2]
    rows = left.mT.reshape(-1, left.shape[1])  # [n c, d1]
    return torch.stack([((rows @ query).view_as(right) * right).sum((1, 2)) for query in queries])


def all_scores(store: FactorStore, queries: Queries, device: torch.device, progress: Callable[[int], None]) -> Tensor:
    """The whole table [Q, N], float32, on the CPU."""
    count = len(next(iter(queries.values())))
    table = torch.empty(count, len(store))
    for start, part in stream_scores(store, queries, device):
        table[:, start : start + part.shape[1]] = part.cpu()
        progress(start + part.shape[1])
    return table


def top_k(
    store: FactorStore, queries: Queries, k: int, largest: bool, device: torch.device, progress: Callable[[int], None]
) -> TopK:
    """The k largest (or smallest) scores of each query, merged block by block; never the whole table."""
    count, k = len(next(iter(queries.values()))), min(k, len(store))
    scores, indices = torch.empty(count, 0, device=device), torch.empty(count, 0, dtype=torch.int64, device=device)
    for start, part in stream_scores(store, queries, device):
        rows = torch.arange(start, start + part.shape[1], device=device).expand(count, -1)
        scores, indices = torch.cat([scores, part], 1), torch.cat([indices, rows], 1)
        scores, order = scores.topk(min(k, scores.shape[1]), 1, largest=largest)
        indices = indices.gather(1, order)
        progress(start + part.shape[1])
    return TopK(indices.cpu(), scores.cpu())


def self_influence(
    store: FactorStore, curvature: dict[str, LayerCurvature], device: torch.device, progress: Callable[[int], None]
) -> Tensor:
    """g_i^T H^-1 g_i of every stored example [N], float32, >= 0."""
    total = torch.zeros(len(store), device=device)
    for number, layer in enumerate(store.manifest.layers):
        rows = max(1, BLOCK_NUMBERS // layer.size)
        for block in store.blocks(layer.name, rows):
            part = curvature[layer.name].quadratic(block.dense(device))
            total[block.start : block.start + len(part)] += part
        progress(number + 1)
    return total.cpu()
