"""Random numbers from a seed, for the length of a block."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators from one or several integers, e.g. a seed and an epoch."""
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed the global generators for the block, and leave them afterwards as they were before it."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            seed_all(*seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
