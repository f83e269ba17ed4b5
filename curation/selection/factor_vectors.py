"""A vector for each row of an index, made of its stored gradient: rows that teach the model alike lie close together.

Axes: N rows, K random directions, D = d1 d2 a layer's gradient.

    v_i = (<R_1, g_i>, ..., <R_K, g_i>) / sqrt(K),   R_k normal over all layers:   E <v_i, v_j> = <g_i, g_j>

A cosine of two vectors is that of the two gradients to about 1 / sqrt(K). The directions are queries like any other, so the
index is read once and no gradient is unpacked whole; everything is the same, bit for bit, whatever the shards of the index.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch

from lorif_core.inverse import identities
from lorif_core.scoring import prepared, streamed
from lorif_core.store import FactorStore

DIRECTIONS = 256


def factor_vectors(store: FactorStore, directions: int = DIRECTIONS, seed: int = 0) -> np.ndarray:
    """Random projections of the gradients, float32 [N, K], in the order of the index.

    Args:
        store: the index.
        directions: K, as much work as so many queries.
        seed: of the directions.
    """
    layers, cpu = store.manifest.layers, torch.device("cpu")
    generator = torch.Generator().manual_seed(seed)
    drawn = {x.name: torch.randn(directions, x.d1, x.d2, generator=generator) for x in layers}
    inverses = identities({x.name: x.size for x in layers}, cpu)
    found = np.empty((len(store), directions), dtype=np.float32)
    with closing(streamed(store, prepared(drawn, inverses, max(directions, len(store))), inverses, cpu)) as parts:
        for first, part in parts:
            found[first : first + part.shape[1]] = part.T.numpy()  # [K, n] -> [n, K]
    found /= np.float32(directions**0.5)
    return found
