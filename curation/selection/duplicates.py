"""Rows that are the same as an earlier one, or nearly: of each such group the first stays.

Axes: N rows, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.errors import DataError
from curation.selection.content import Content
from curation.selection.exclusions import Exclusion
from curation.selection.near_texts import NearTexts
from curation.selection.similarity import unit

BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Alike:
    """From where on two rows are nearly the same.

    Attributes:
        jaccard: of the shingles of texts, in (0, 1]; 1 = only rows that hold exactly the same.
        cosine: of vectors, in (0, 1]; likewise. Embeddings of different rows are often at 0.9.
    """

    jaccard: float = 0.8
    cosine: float = 1.0

    def __post_init__(self) -> None:
        """Check the thresholds.

        Raises:
            ValueError: one is out of range.
        """
        for name, value in vars(self).items():
            if not 0 < value <= 1:
                raise ValueError(f"{name}: expected more than 0 and at most 1, got {value}")


ALIKE = Alike()


def duplicates(content: Content, alike: Alike = ALIKE, order: Sequence[int] | None = None) -> list[Exclusion]:
    """The rows to exclude so that no two of the rest are alike: each is like one that stays.

    Args:
        content: of the pool.
        alike: from where on two rows are nearly the same.
        order: rows that come first stay (positions, N); the pool's where left out.

    Returns:
        In that order.

    Raises:
        DataError: every row is the same.
    """
    rows = list(range(len(content))) if order is None else [int(row) for row in order]
    found: list[Exclusion] = []
    first: dict[str, int] = {}
    for row in rows:
        one = first.setdefault(content.digests[row], row)
        if one != row:
            found.append(Exclusion(row, "holds exactly what another row does", content.ids[one], 1.0))
    left = list(first.values())
    if content.texts is not None and alike.jaccard < 1:
        found += (near := _near_texts(content, left, alike.jaccard))
        left = _without(left, near)
    if content.vectors is not None and alike.cosine < 1:
        found += (near := _near_vectors(content, left, alike.cosine))
        left = _without(left, near)
    if len(left) == 1 and len(rows) > 1:
        raise DataError(
            [f"all {len(rows):,} rows are duplicates of one, {content.ids[left[0]]!r}: there is nothing to choose from"]
        )
    return found


def _without(rows: list[int], exclusions: list[Exclusion]) -> list[int]:
    gone = {x.row for x in exclusions}
    return [row for row in rows if row not in gone]


def _near_texts(content: Content, rows: list[int], threshold: float) -> list[Exclusion]:
    kept: list[int] = []
    texts, found = NearTexts(threshold), []
    for row in rows:
        shingles = content.shingles[row]
        sketch = texts.sketch(shingles)
        other = texts.like(shingles, sketch)
        if other is None:
            texts.keep(shingles, sketch)
            kept.append(row)
        else:
            found.append(Exclusion(row, "holds nearly the text of another row", content.ids[kept[other[0]]], other[1]))
    return found


def _near_vectors(content: Content, rows: list[int], threshold: float) -> list[Exclusion]:
    """Each row against all those kept before it: N^2 D products at worst."""
    vectors = unit(np.asarray(content.vectors)[rows])
    kept: list[int] = []
    found = []
    for start in range(0, len(rows), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        before = len(kept)
        earlier = block @ vectors[kept].T  # [n, D] @ [D, kept] -> [n, kept]
        inside = block @ block.T  # [n, n]
        for place in range(len(block)):
            fresh = [i - start for i in kept[before:]]
            cosines = np.concatenate([earlier[place], inside[place, fresh]])
            best = int(cosines.argmax()) if len(cosines) else -1
            if best >= 0 and cosines[best] >= threshold:
                like, cosine = content.ids[rows[kept[best]]], float(min(cosines[best], 1.0))
                found.append(Exclusion(rows[start + place], "has nearly the vector of another row", like, cosine))
            else:
                kept.append(start + place)
    return found
