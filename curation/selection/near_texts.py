"""Texts that are nearly the same: candidates by MinHash, and the Jaccard similarity of their shingles to decide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

from datasketch import MinHash, MinHashLSH

from curation.selection.content import jaccard, shingles

PERMUTATIONS = 128
MISSES = 0.9
"""Weight of missed pairs against needless ones when the bands are chosen: a needless candidate costs one comparison."""


class NearTexts:
    """Texts kept so far, asked for one like another.

    Limitations: MinHash misses some pairs just above the threshold; those it finds are checked, so none is wrong. A text
    that is a small part of a longer one is not like it.
    """

    def __init__(self, threshold: float, seed: int = 0) -> None:
        """Texts are alike from a Jaccard similarity of `threshold` on, in (0, 1)."""
        self.threshold = threshold
        self._empty = MinHash(num_perm=PERMUTATIONS, seed=seed + 1, hashfunc=crc32)
        self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(1 - MISSES, MISSES))
        self._kept: list[frozenset[str]] = []

    def sketch(self, shingles: frozenset[str]) -> MinHash:
        """The MinHash of a text."""
        found = self._empty.copy()
        found.update_batch([x.encode() for x in shingles])
        return found

    def keep(self, shingles: frozenset[str], sketch: MinHash) -> None:
        """Add a text; it is known by how many were added before."""
        self._index.insert(len(self._kept), sketch, check_duplication=False)
        self._kept.append(shingles)

    def like(self, shingles: frozenset[str], sketch: MinHash) -> tuple[int, float] | None:
        """(number, similarity) of the kept text most like this one, the first of equals; None where none is alike."""
        found = [(-jaccard(shingles, self._kept[number]), number) for number in self._index.query(sketch)]
        best = min(found, default=(0.0, 0))
        return (best[1], -best[0]) if found and -best[0] >= self.threshold else None


@lru_cache(maxsize=2)  # every stage of a run asks anew which target rows measure
def near_copies(kept: Sequence[str], others: Sequence[str], threshold: float) -> frozenset[int]:
    """Positions of those of ``others`` that are nearly one of the texts ``kept``; both are tuples, to be remembered.

    Args:
        kept: texts.
        others: texts.
        threshold: least Jaccard similarity of their shingles, in (0, 1).
    """
    texts = NearTexts(threshold)
    for text in kept:
        parts = shingles(text)
        texts.keep(parts, texts.sketch(parts))
    found = ((place, shingles(text)) for place, text in enumerate(others))
    return frozenset(place for place, parts in found if texts.like(parts, texts.sketch(parts)) is not None)
