"""Rows that are the same record as one to be removed, told by their text, their inputs or their gradients.

Axes: N rows, n of them to be removed, D a layer's flattened projected gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from curation.unlearning.alignment import BLOCK_NUMBERS
from curation.unlearning.traces import known_part, tensor_bytes, tensors_of
from lorif_core.store import FactorStore

CHARACTERS = (3, 5)
"""Least and most characters of what texts are compared by, inside words."""


@dataclass(frozen=True)
class Duplicate:
    """A row that is not to be removed itself and is like one that is.

    Attributes:
        position: of the row.
        of: position of the one it is most like.
        similarity: cosine of the two.
    """

    position: int
    of: int
    similarity: float


def by_text(texts: Sequence[str], forget: np.ndarray, least: float) -> list[Duplicate]:
    """Rows whose text is like that of a row to be removed: the cosine of their tf-idf weighted character n-grams.

    Args:
        texts: of all rows, N.
        forget: positions of those to be removed, int [n].
        least: cosine from which two are the same.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=CHARACTERS).fit_transform(texts)  # sparse [N, grams]
    cosines = np.asarray((vectors[forget] @ vectors.T).todense())  # [n, N]
    return _duplicates(cosines, forget, least)


def by_inputs(rows: Dataset[Any], count: int, forget: np.ndarray) -> list[Duplicate]:
    """Rows whose inputs (pixels, features) are, number for number, those of a row to be removed, whatever their label.

    Inputs with too few different numbers are left alone: two rows may have those by chance.

    Args:
        rows: (inputs, label) of each row.
        count: how many there are, N.
        forget: positions of those to be removed, int [n].
    """

    def content(row: int) -> bytes:
        return b"".join(map(tensor_bytes, tensors_of(rows[row][0]).values()))

    gone = set(map(int, forget))
    known = {content(row): row for row in sorted(gone)}
    known = {inputs: row for inputs, row in known.items() if known_part(inputs) is not None}
    others = (row for row in range(count if known else 0) if row not in gone)
    return [Duplicate(row, known[inputs], 1.0) for row in others if (inputs := content(row)) in known]


def by_gradients(store: FactorStore, forget: np.ndarray, least: float) -> list[Duplicate]:
    """Rows whose stored gradient points where that of a row to be removed does.

    Args:
        store: an index of the rows.
        forget: positions of those to be removed, int [n].
        least: cosine from which two are the same.
    """
    count = len(store)
    dots = torch.zeros(len(forget), count, dtype=torch.float64)
    squares = torch.zeros(count, dtype=torch.float64)
    place = {int(position): row for row, position in enumerate(forget)}
    for layer in store.manifest.layers:
        rows = max(1, BLOCK_NUMBERS // layer.size)
        going = torch.zeros(len(forget), layer.size)  # [n, D]
        for block in store.blocks(layer.name, rows):
            inside = [p for p in place if block.start <= p < block.start + len(block)]
            if inside:
                dense: Tensor = block.dense(going.device, going.dtype)
                going[[place[p] for p in inside]] = dense[[p - block.start for p in inside]]
        for block in store.blocks(layer.name, rows):
            part = slice(block.start, block.start + len(block))
            dots[:, part] += (going @ block.dense(going.device, going.dtype).T).double()  # [n, D] @ [D, rows]
            squares[part] += block.squared_norms()
    norms = squares.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return _duplicates((dots / norms / norms[forget, None]).numpy(), forget, least)


def _duplicates(cosines: np.ndarray, forget: np.ndarray, least: float) -> list[Duplicate]:
    """Of cosines [n, N] the rows with a large one, those to be removed left out, in order."""
    nearest, best = cosines.argmax(0), cosines.max(0)
    best[forget] = -np.inf
    return [Duplicate(int(row), int(forget[nearest[row]]), float(best[row])) for row in np.flatnonzero(best >= least)]
