from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from curation.errors import DataError
from curation.selection.budget import Budget
from tests.curation.selection.pools import pool_of


def test_a_pool_tells_all_that_is_wrong_with_it() -> None:
    with pytest.raises(DataError) as caught:
        pool_of([1.0, np.nan, 2.0], lengths=np.array([1, 0, 3]), ids=["a", "b", "a"], allowed=np.zeros(3, bool))
    text = str(caught.value)
    for part in (
        "scores",
        "'b'",
        "lengths below 1",
        "repeat: 3 rows have 2 ids",
        "all 3 rows of the pool are excluded",
    ):
        assert part in text


def test_an_empty_pool_and_parts_of_other_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        pool_of([])
    with pytest.raises(DataError, match=r"3 ids, but 2 rows of vectors"):
        pool_of([1, 2, 3], vectors=np.ones((2, 2), dtype=np.float32))
    with pytest.raises(DataError, match=r"vectors of the pool are not finite: row with id 'row1'"):
        pool_of([1, 2], vectors=np.array([[0.0], [np.inf]]), columns=pl.DataFrame({"source": ["x", "y"]}))


def test_rows_rank_by_score_and_then_by_their_place() -> None:
    pool = pool_of([1, 3, 3, 2, 3], allowed=np.array([True, False, True, True, True]))
    assert pool.ranked().tolist() == [2, 4, 3, 0]
    assert pool.ranked(np.array([9, 0, 1, 9, 2])).tolist() == [0, 3, 4, 2]


def test_a_budget_of_rows_tokens_or_a_share() -> None:
    pool = pool_of(np.zeros(10), lengths=np.arange(1, 11))
    assert Budget(share=0.25).of(pool) == Budget(rows=2)
    assert Budget(share=0.01).of(pool) == Budget(rows=1)
    assert Budget(rows=3).take([4, 2, 7, 1], pool.lengths).tolist() == [4, 2, 7]
    assert Budget(tokens=11).take([4, 6, 2, 7, 1], pool.lengths).tolist() == [4, 2, 1]  # 5, not 7, 3, not 8, 2
    assert Budget(tokens=11).most(pool) == 4  # 1 + 2 + 3 + 4


def test_a_budget_is_read_no_further_than_needed() -> None:
    def endless():
        yield from range(3)
        raise AssertionError("read on")

    assert Budget(rows=3).take(endless(), np.ones(9, dtype=np.int64)).tolist() == [0, 1, 2]
    assert Budget(tokens=3).take(endless(), np.ones(9, dtype=np.int64)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"rows": 3, "share": 0.5}, {"rows": 0}, {"tokens": -1}, {"share": 1.5}])
def test_a_budget_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**options)


def test_a_budget_larger_than_the_pool_is_refused_with_the_numbers() -> None:
    pool = pool_of([1, 2, 3, 4], lengths=np.array([5, 5, 6, 7]), allowed=np.array([True, True, True, False]))
    with pytest.raises(DataError, match=r"budget of 4 rows .*3 of 4 rows are left"):
        Budget(rows=4).of(pool)
    with pytest.raises(DataError, match=r"budget of 4 rows \(100.0% of 4\)"):
        Budget(share=1.0).of(pool)
    with pytest.raises(DataError, match=r"budget of 17 tokens .*with 16"):
        Budget(tokens=17).of(pool)
    with pytest.raises(DataError, match=r"below the shortest row's 5"):
        Budget(tokens=4).of(pool)
