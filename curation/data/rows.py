"""Map-style data sets of (input, code) rows, held in memory or read through a user's own data set.

They hold tensors and numpy arrays, never frames: polars deadlocks in forked loader workers.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset


class Inputs(Protocol):
    """The inputs of N rows: a tensor [N, ...], or anything that reads row i when asked for it."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, row: int) -> Any:
        """The input tensor of one row."""


class LabelledRows(Dataset[tuple[Tensor, int]]):
    """Rows whose labels can be replaced without touching their inputs.

    Args:
        inputs: of N rows, all of one shape.
        codes: int64 [N], the position of each row's label in the classes.
    """

    def __init__(self, inputs: Inputs, codes: np.ndarray) -> None:
        if len(inputs) != len(codes):
            raise ValueError(f"LabelledRows: {len(inputs)} inputs and {len(codes)} codes; expected one code a row")
        self.inputs = inputs
        self.codes = np.asarray(codes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.inputs[row], int(self.codes[row])

    def take(self, rows: np.ndarray, codes: np.ndarray) -> LabelledRows:
        """The rows at positions ``rows`` [M], in that order, with ``codes`` [M]."""
        if isinstance(self.inputs, Tensor):
            return LabelledRows(self.inputs[torch.from_numpy(rows)], codes)
        return LabelledRows(Subset(self.inputs, rows.tolist()), codes)  # type: ignore[arg-type]

    def digest(self) -> str:
        """Sha256 (64 hex digits) of codes and inputs: their types, shapes, bytes and order."""
        digest = hashlib.sha256(self.codes.astype("<i8").tobytes())
        inputs = self.inputs
        blocks = [inputs] if isinstance(inputs, Tensor) else (inputs[row][None] for row in range(len(self)))
        header = ""
        for block in blocks:  # [rows, ...]; a block hashes as its rows do one after the other
            described = f"{block.dtype} {tuple(block.shape[1:])}"
            if described != header:
                digest.update(described.encode())
                header = described
            values: Any = block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(values)
        return digest.hexdigest()
