"""Other ways to rank a pool, which a selection must beat: chance, words, similarity, loss.

Axes: N pool rows, Q target rows, G target groups, D numbers of a vector.

Each gives float32 [N], higher = chosen first, for the same strategies and budgets as the scores. What is of target rows is a
mean within each group, then over groups (`mean`) or the highest (`max`), as influence scores are aggregated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from curation.errors import DataError
from curation.selection.similarity import BLOCK_NUMBERS, unit

How = Literal["mean", "max"]
HASHED = 2**20
"""Buckets of hashed n-grams."""
WORDS = r"(?u)\w+"
"""Words of one letter too: in some languages they are many."""


def random_scores(count: int, seed: int) -> np.ndarray:
    """A random order."""
    return np.random.default_rng(seed).permutation(count).astype(np.float32)


def bm25(pool: Sequence[str], target: Sequence[str], groups: Sequence[str], how: How = "mean") -> np.ndarray:
    """BM25 (k1 = 1.5, b = 0.75, Lucene's form) of each pool text for the words of the target texts.

    Args:
        pool: N texts.
        target: Q texts, each a query.
        groups: of each target text, Q.
        how: over groups.

    Raises:
        DataError: there is nothing to compare.
    """
    import bm25s  # slow to import, and only needed here

    places = _places(len(pool), len(target), groups)

    def words(texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = bm25s.tokenize(
            list(texts), token_pattern=WORDS, stopwords=[], return_ids=False, show_progress=False
        )
        return found

    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(words(pool), show_progress=False)
    queries = [[word for word in query if word in index.vocab_dict] for query in words(target)]

    def of_group(rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = sum(index.get_scores(queries[row]).astype(np.float64) for row in rows) / len(rows)
        return found

    return _over_groups(places, how, of_group)


def similarity(pool: np.ndarray, target: np.ndarray, groups: Sequence[str], how: How = "mean") -> np.ndarray:
    """RepSim: the cosine of embeddings.

    Args:
        pool: [N, D], the model's own penultimate features, say.
        target: [Q, D].
        groups: of each target row, Q.
        how: over groups.
    """
    if pool.shape[1:] != target.shape[1:]:
        raise DataError(
            [f"embeddings of the pool have {pool.shape[1:]} numbers, those of the target {target.shape[1:]}"]
        )
    places = _places(len(pool), len(target), groups)
    count = places.max() + 1
    a, b = unit(pool), unit(target).astype(np.float64)
    means = np.stack([b[places == g].mean(0) for g in range(count)])  # [G, D]: the mean of cosines is one with the mean
    found = np.empty(len(a), dtype=np.float32)
    rows = max(1, BLOCK_NUMBERS // count)
    for start in range(0, len(a), rows):
        table = a[start : start + rows] @ means.T  # [n, D] @ [D, G] -> [n, G]
        found[start : start + rows] = table.max(1) if how == "max" else table.mean(1)
    return found


def text_similarity(pool: Sequence[str], target: Sequence[str], groups: Sequence[str], how: How = "mean") -> np.ndarray:
    """The same of hashed words and pairs of words, where there is no model to embed texts with."""
    places = _places(len(pool), len(target), groups)
    hashed = HashingVectorizer(
        n_features=HASHED, ngram_range=(1, 2), token_pattern=WORDS, norm="l2", alternate_sign=False
    )
    a, b = hashed.transform(pool), hashed.transform(target)  # sparse [N, buckets], [Q, buckets]

    def of_group(rows: np.ndarray) -> np.ndarray:
        return np.asarray(a @ b[rows].mean(0).T).ravel()  # [N, buckets] @ [buckets, 1] -> [N]

    return _over_groups(places, how, of_group)


def loss(losses: np.ndarray, highest: bool = True) -> np.ndarray:
    """The rows' own losses [N], of the model as it was indexed (`FactorStore.losses`): the highest first, or the lowest.

    A loss a token (perplexity is its exponential, in the same order) where `losses` were divided by lengths.

    Raises:
        DataError: one is not finite.
    """
    if not np.isfinite(losses).all():
        raise DataError(
            [f"{int((~np.isfinite(losses)).sum()):,} of {len(losses):,} losses are not finite: check the model"]
        )
    return (losses if highest else -losses).astype(np.float32)


def _over_groups(places: np.ndarray, how: How, of_group: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The mean or maximum, float32 [N], of what `of_group` gives for the target rows of each group, one after the other."""
    groups = [np.flatnonzero(places == group) for group in range(int(places.max()) + 1)]
    found = of_group(groups[0])
    for rows in groups[1:]:
        found = np.maximum(found, of_group(rows)) if how == "max" else found + of_group(rows)
    return (found if how == "max" else found / len(groups)).astype(np.float32)


def _places(pool: int, target: int, groups: Sequence[str]) -> np.ndarray:
    """The group of each target row by number, int [Q]."""
    problems = [
        f"the {name} has no rows: there is nothing to compare"
        for name, n in (("pool", pool), ("target", target))
        if not n
    ]
    if target != len(groups):
        problems.append(f"the target has {target:,} rows, but {len(groups):,} of them were given a group")
    if problems:
        raise DataError(problems)
    names = list(dict.fromkeys(groups))
    return np.array([names.index(name) for name in groups])
