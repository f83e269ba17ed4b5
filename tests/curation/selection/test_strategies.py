from __future__ import annotations

import numpy as np
import pytest

from curation.errors import CurationError, DataError
from curation.selection.budget import Budget
from curation.selection.strategies import TopK, build_strategy
from tests.curation.selection.pools import pool_of


def test_top_k_takes_the_highest_that_are_allowed_ties_in_pool_order() -> None:
    pool = pool_of([5, 1, 7, 5, 9], allowed=np.array([True, True, True, True, False]))
    found = TopK().select(pool, Budget(rows=3))
    assert found.rows.tolist() == [2, 0, 3]
    assert found.scores.tolist() == [7, 5, 5] and found.weights.tolist() == [1, 1, 1]
    assert found.reasons[0] == "score 7, number 1 of 5"


def test_a_budget_larger_than_the_pool_is_told_before_choosing() -> None:
    with pytest.raises(DataError, match="budget of 3 rows is larger than the pool"):
        TopK().select(pool_of([1, 2]), Budget(rows=3))


def test_strategies_are_built_by_name() -> None:
    assert build_strategy("top_k", {}) == TopK()
    with pytest.raises(CurationError, match=r"expected one of .*top_k.*; got 'best'"):
        build_strategy("best", {})
    with pytest.raises(CurationError, match="top_k: unknown options k; it takes none"):
        build_strategy("top_k", {"k": 3})
