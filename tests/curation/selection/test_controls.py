"""Controls and bias against their formulas, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curation.errors import DataError
from curation.selection import controls
from curation.selection.bias import bias, correlation, hubs

POOL = ["the cat sat on the mat", "a dog and a cat", "stocks fell on monday", "the dog sat", "cat cat cat dog"]
TARGET = ["cat sat", "dog dog", "market stocks unknownword"]
GROUPS = ["pets", "pets", "money"]


def bm25(texts: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Lucene's BM25, word for word."""
    documents = [text.split() for text in texts]
    mean = np.mean([len(x) for x in documents])
    found = np.zeros(len(texts))
    for word in query.split():
        with_it = sum(word in x for x in documents)
        idf = math.log(1 + (len(texts) - with_it + 0.5) / (with_it + 0.5))
        for i, x in enumerate(documents):
            found[i] += idf * x.count(word) / (x.count(word) + k1 * (1 - b + b * len(x) / mean)) if with_it else 0
    return found


@pytest.mark.parametrize("how", ["mean", "max"])
def test_bm25_is_its_formula(how: controls.How) -> None:
    tables = np.array([bm25(POOL, query) for query in TARGET])
    groups = np.stack([tables[:2].mean(0), tables[2]])
    expected = groups.max(0) if how == "max" else groups.mean(0)
    np.testing.assert_allclose(controls.bm25(POOL, TARGET, GROUPS, how), expected, rtol=1e-5)


def test_similarity_is_the_mean_cosine_of_each_group() -> None:
    generator = np.random.default_rng(0)
    pool, target = generator.normal(size=(40, 6)), generator.normal(size=(3, 6))
    table = (pool / np.linalg.norm(pool, axis=1)[:, None]) @ (target / np.linalg.norm(target, axis=1)[:, None]).T
    groups = np.stack([table[:, :2].mean(1), table[:, 2]])
    np.testing.assert_allclose(controls.similarity(pool, target, GROUPS), groups.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(controls.similarity(pool, target, GROUPS, "max"), groups.max(0), rtol=1e-4, atol=1e-6)
    with pytest.raises(DataError, match=r"\(6,\) numbers, those of the target \(5,\)"):
        controls.similarity(pool, target[:, :5], GROUPS)


def test_texts_without_a_model_are_compared_by_their_words() -> None:
    found = controls.text_similarity(POOL, TARGET, GROUPS, "max")
    assert found[2] == pytest.approx(1 / (7 * 5) ** 0.5)  # one of 4 words and 3 pairs, of 3 words and 2 pairs
    assert found[[0, 3, 4]].min() > 0.2
    assert controls.text_similarity(["nothing in common"], ["cat"], ["a"]).tolist() == [0]
    same = controls.text_similarity(["cat sat"], ["cat sat"], ["a"])
    assert same.tolist() == pytest.approx([1])


def test_random_and_loss() -> None:
    assert controls.random_scores(9, 1).tolist() == controls.random_scores(9, 1).tolist()
    assert sorted(controls.random_scores(9, 1).tolist()) == list(range(9))
    assert controls.loss(np.array([1.0, 3.0])).tolist() == [1, 3]
    assert controls.loss(np.array([1.0, 3.0]), highest=False).tolist() == [-1, -3]
    with pytest.raises(DataError, match="1 of 2 losses are not finite"):
        controls.loss(np.array([1.0, np.nan]))


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(DataError, match=r"the pool has no rows.*\n.*target has no rows"):
        controls.bm25([], [], [])
    with pytest.raises(DataError, match="target has 3 rows, but 1 of them"):
        controls.text_similarity(POOL, TARGET, ["a"])


def test_hubs_and_correlations() -> None:
    rows = np.array([[0, 1, 2], [0, 3, 4], [0, 1, 5], [0, 6, 7]])
    found = hubs(rows, 9)
    assert found.counts.tolist() == [4, 2, 1, 1, 1, 1, 1, 1, 0] and found.rows(2).tolist() == [0, 1]
    assert found.most == 1 and found.distinct == pytest.approx(8 / 12)
    scores, lengths = np.arange(9.0), np.arange(9) ** 2
    all_of_it = bias(rows, scores, lengths, -scores)
    assert all_of_it.length == pytest.approx(1) and all_of_it.norm == pytest.approx(-1)
    assert correlation(scores, np.ones(9)) is None and bias(rows, scores, lengths).norm is None
