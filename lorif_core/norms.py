"""Lengths of the stored gradients, in one pass over an index.

Axes: N training examples.
"""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor

from lorif_core.store import FactorStore
from lorif_core.threads import workers
from lorif_core.windows import Window, window_rows, windows

BLOCK_NUMBERS = 2**18
"""Stored numbers of a block: 2 MB of doubles."""


def gradient_norms(store: FactorStore) -> Tensor:
    """|g_i| of every stored example over all layers, projected and coded as it is stored.

    Returns:
        float64 [N] on the CPU, >= 0.
    """
    bits, layers = store.manifest.bits, store.manifest.layers

    def squares(window: Window) -> tuple[Window, Tensor]:
        total = torch.zeros(len(window), dtype=torch.float64)
        for layer in layers:
            for block in window.blocks(layer, max(1, BLOCK_NUMBERS // layer.numbers), bits):
                first = block.start - window.start
                total[first : first + len(block)] += block.squared_norms()
        return window, total

    found = torch.zeros(len(store), dtype=torch.float64)
    with workers(torch.device("cpu")) as pool, closing(windows(store, window_rows(store))) as parts:
        for window, total in pool.map(squares, parts):
            found[window.start : window.stop] = total
    return found.sqrt_()
