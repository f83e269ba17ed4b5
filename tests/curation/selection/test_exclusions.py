"""Duplicates, contamination and harm: planted rows are found, and similarities are those of a brute force."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from curation.errors import DataError
from curation.selection.budget import Budget
from curation.selection.content import Content, content_of, jaccard, normalised, shingles
from curation.selection.decontamination import contaminated
from curation.selection.duplicates import Alike, duplicates
from curation.selection.exclusions import Exclusion, exclusion_table
from curation.selection.harmful import harmful, harmful_table
from curation.selection.strategies import TopK
from tests.curation.selection.pools import pool_of

WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "paper",
    "green",
    "winter",
    "candle",
    "forest",
    "silver",
    "ocean",
    "garden",
    "window",
    "mirror",
    "travel",
    "bridge",
    "lemon",
    "castle",
    "thunder",
    "pencil",
    "harbour",
    "meadow",
    "copper",
    "violin",
]


def texts(count: int, words: int = 25, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, words)) + f" number {i * 7919}" for i in range(count)]


def content(values: list[str], prefix: str = "r") -> Content:
    frame = pl.DataFrame({"example_id": [f"{prefix}{i}" for i in range(len(values))], "text": values})
    return content_of(frame, ["text"], text="text")


def test_a_pool_where_every_row_occurs_three_times_yields_none_twice() -> None:
    values = texts(60) * 3
    rows = content(values)
    excluded = duplicates(rows)
    assert sorted(x.row for x in excluded) == list(range(60, 180))
    assert all(x.like == f"r{x.row % 60}" and x.similarity == 1 for x in excluded)
    left = ~np.isin(np.arange(180), [x.row for x in excluded])
    pool = pool_of(np.random.default_rng(0).normal(size=180), allowed=left)
    chosen = TopK().select(pool, Budget(rows=60)).rows
    assert len({values[row] for row in chosen}) == 60
    with pytest.raises(DataError, match="budget of 61 rows is larger than the pool: 60 of 180 rows are left"):
        TopK().select(pool, Budget(rows=61))


def test_texts_that_differ_in_a_word_are_near_duplicates_by_their_jaccard_similarity() -> None:
    values = texts(40)
    near = [value.replace("number", "NUMBER,", 1).replace(value.split()[0], "basket", 1) for value in values[:10]]
    rows = content(values + near)
    found = duplicates(rows, Alike(jaccard=0.7))
    truth = {40 + i: jaccard(shingles(near[i]), shingles(values[i])) for i in range(10)}
    assert {x.row for x in found} == {row for row, value in truth.items() if value >= 0.7} and len(found) >= 8
    for one in found:
        assert one.like == f"r{one.row - 40}" and one.similarity == pytest.approx(truth[one.row])
    assert duplicates(rows, Alike(jaccard=1.0)) == []
    best_first = duplicates(rows, Alike(jaccard=0.7), order=list(range(49, -1, -1)))
    assert {x.row for x in best_first} == {x.row - 40 for x in found}


def test_shingles_and_their_similarity() -> None:
    assert normalised("  Grüße,  WORLD!\n") == "grüsse world"
    assert shingles("abcdef") == {"abcde", "bcdef"} and shingles("ab") == {"ab"} and shingles("!") == {""}
    assert jaccard(frozenset("abcd"), frozenset("cdef")) == pytest.approx(2 / 6)


def test_rows_without_text_are_told_by_content_and_by_the_cosine_of_vectors() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(2100, 12))
    vectors[2050] = 3 * vectors[7]
    vectors[1500] = vectors[3] + 1e-3
    frame = pl.DataFrame({"example_id": range(2100), "x": [0.5, *generator.normal(size=2098), 0.5]})
    rows = content_of(frame, ["x"], vectors=vectors)
    assert [(x.row, x.like) for x in duplicates(rows)] == [(2099, 0)]
    found = duplicates(rows, Alike(cosine=0.999))
    assert [(x.row, x.like) for x in found] == [(2099, 0), (1500, 3), (2050, 7)]
    assert all(x.similarity is not None and 0.999 <= x.similarity <= 1 for x in found)


def test_rows_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(DataError, match=r"all 5 rows are duplicates of one, 'r0'"):
        duplicates(content(["the same words"] * 5))
    assert duplicates(content(["one"])) == []


def test_no_target_or_evaluation_row_nor_one_like_it_stays_in_the_pool() -> None:
    values = texts(50)
    evaluation = texts(5, seed=9)
    pool = content([*values, evaluation[2], evaluation[3].replace("number", "numbers"), "unlike anything else at all"])
    target = content([values[4], values[9].upper() + "!"], "t")
    target = Content(["r30", "t1"], target.digests, target.texts)
    found = {x.row: x for x in contaminated(pool, {"target": target, "evaluation": content(evaluation, "e")})}
    assert sorted(found) == [4, 9, 30, 50, 51]
    assert (found[4].reason, found[4].like) == ("holds exactly what a row of target does", "r30")
    assert (found[9].reason, found[9].like) == ("holds nearly the text of a row of target", "t1")
    assert (found[30].reason, found[30].like) == ("is a row of target", "r30")
    assert (found[50].reason, found[50].like) == ("holds exactly what a row of evaluation does", "e2")
    assert found[51].like == "e3" and 0.8 <= (found[51].similarity or 0) < 1
    assert 30 not in {x.row for x in contaminated(pool, {"target": target}, same_ids=False)}
    table = exclusion_table(found.values(), pl.Series("example_id", pool.ids))
    assert table.columns == ["example_id", "position", "kind", "reason", "like", "similarity"]
    assert table["example_id"].to_list() == ["r4", "r9", "r30", "r50", "r51"]
    assert table["kind"].to_list() == ["target rows"] * 3 + ["evaluation rows"] * 2


def test_near_vectors_of_the_target_are_excluded_and_a_pool_of_nothing_else_is_refused() -> None:
    generator = np.random.default_rng(0)
    vectors, target = generator.normal(size=(30, 8)), generator.normal(size=(2, 8))
    vectors[11] = 2 * target[1]
    pool = Content(list(range(30)), [str(i) for i in range(30)], vectors=vectors)
    rows = Content([100, 101], ["a", "b"], vectors=target)
    assert [(x.row, x.like) for x in contaminated(pool, {"target": rows}, Alike(cosine=0.99))] == [(11, 101)]
    with pytest.raises(
        DataError, match=r"all 2 rows of the pool are rows of the following.*: 2 of target; there is nothing"
    ):
        contaminated(rows, {"target": rows})
    with pytest.raises(DataError, match=r"the pool has vectors and the target rows have none"):
        contaminated(pool, {"target": Content([1], ["x"])})
    with pytest.raises(DataError, match="2 ids, but 1 rows of digests"):
        Content([1, 2], ["x"])
    with pytest.raises(DataError, match="no column 'texts'"):
        content_of(pl.DataFrame({"example_id": [1], "text": ["a"]}), ["texts"])
    with pytest.raises(ValueError, match="cosine: expected more than 0"):
        Alike(cosine=0)


def test_harmful_rows_are_listed_worst_first() -> None:
    mean = np.array([0.1, -0.5, 0.0, -0.5, -0.1, -2.0])
    rows = harmful(mean)
    assert rows.tolist() == [5, 1, 3, 4]
    table = harmful_table(rows, pl.Series([f"r{row}" for row in range(6)]), mean)
    assert table["example_id"].to_list() == ["r5", "r1", "r3", "r4"]
    assert table["score"].to_list() == [-2.0, -0.5, -0.5, -0.1] and "raises the target" in table["reason"][0]
    assert harmful_table(harmful(-mean.clip(max=0)), pl.Series(range(6)), mean).is_empty()


def test_the_table_gives_each_row_its_first_reason() -> None:
    rows = [Exclusion(2, "first", 7, 0.9), Exclusion(0, "own", 1, 1.0, of="target"), Exclusion(2, "second", 8, 1.0)]
    table = exclusion_table(rows, pl.Series("example_id", [10, 11, 12]))
    assert table.rows() == [(10, 0, "target rows", "own", "1", 1.0), (12, 2, "duplicates", "first", "7", 0.9)]
    assert exclusion_table([], pl.Series(["a"])).is_empty()
