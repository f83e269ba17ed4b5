from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import CurationError
from curation.examples import (
    Position,
    column_problems,
    id_problems,
    label_problems,
    name_rows,
    row_names,
    split_problems,
    table_digest,
    write_parquet_atomic,
)


def table(**columns: object) -> pl.DataFrame:
    base = {"example_id": ["a", "b", "c"], "label": [0, 1, 0], "split": ["train", "train", "validation"]}
    return pl.DataFrame({**base, **columns}, strict=False)


def test_importing_the_tables_loads_no_heavy_library() -> None:
    code = "import sys, curation, curation.examples, curation.data.noise, curation.data.edits; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "sklearn", "mlflow", "prefect"} & set(done.stdout.split())


def test_every_problem_is_listed_with_its_rows() -> None:
    frame = table(example_id=["a", None, "a"], label=[None, 1, 0], split=["train", "dev", None])
    names = row_names(frame["example_id"])
    no_id, twice = id_problems(frame["example_id"], "t.csv")
    assert no_id == (
        "t.csv: column 'example_id': no id in row 2 (counting from 1, header not counted); every row needs one"
    )
    assert twice == "t.csv: column 'example_id': the same id on several rows: 'a'; ids must be unique"
    assert label_problems(frame["label"], names, "t.csv") == [
        "t.csv: column 'label': no label in row with id 'a'; label or remove them"
    ]
    assert split_problems(frame["split"], names, "t.csv") == [
        "t.csv: column 'split': 'dev', no value in row with id 'a' and row 2 (counting from 1, header not counted); "
        "it must be one of train, validation, test"
    ]
    good = table()
    assert not id_problems(good["example_id"], "t") + label_problems(good["label"], names, "t")
    assert not split_problems(good["split"], names, "t")


@pytest.mark.parametrize(
    ("check", "values", "words"),
    [
        (id_problems, [1.5, 2.0, 3.0], "column 'x' holds fractional numbers; ids must be text or whole numbers"),
        (id_problems, ["a", " ", "c"], "no id in row 2"),
        (label_problems, [0.5, 1.0, 2.0], "column 'x' holds 0.5 or the like in row with id 'a'; labels must be"),
        (label_problems, [[1], [2], [3]], "column 'x' holds lists; labels must be text or whole numbers"),
        (label_problems, [None, None, None], "column 'x' holds nothing; labels must be text or whole numbers"),
        (label_problems, ["x", "", "y"], "no label in row with id 'b'"),
        (split_problems, [1, 2, 3], "column 'x' holds whole numbers; it must hold the words train, validation, test"),
    ],
)
def test_wrong_columns(check: Callable[..., list[str]], values: list[object], words: str) -> None:
    names = () if check is id_problems else (["a", "b", "c"],)
    (problem,) = check(pl.Series("x", values), *names, "t.csv")
    assert words in problem


def test_missing_columns_are_listed_with_those_there_are() -> None:
    frame = table().drop("label", "split").with_columns(labels=1)
    assert column_problems(frame, ["label", "split", "labels"], "t.csv") == [
        "t.csv: there is no column 'label' (did you mean 'labels'?); the columns are example_id, labels",
        "t.csv: there is no column 'split'; the columns are example_id, labels",
    ]
    wide = pl.DataFrame({f"c{number}": [0] for number in range(100)})
    assert column_problems(wide, ["label"], "t")[0].endswith("c28, c29 and 70 more")


def test_at_most_five_rows_are_named() -> None:
    assert name_rows(["a"]) == "row with id 'a'"
    assert name_rows([1, 2]) == "rows with ids 1, 2"
    assert name_rows(list(range(12))) == "rows with ids 0, 1, 2, 3, 4 and 7 more"
    counted = "(counting from 1, header not counted)"
    assert name_rows([Position(0)]) == f"row 1 {counted}"
    assert name_rows([Position(row) for row in range(7)]) == f"rows 1, 2, 3, 4, 5 and 2 more {counted}"
    assert name_rows([Position(2), "a", Position(4)]) == f"row with id 'a' and rows 3, 5 {counted}"


MIXED = pl.DataFrame(
    {
        "number": [1.5, None, 2.0],
        "text": ["ab", "c", None],
        "image": [[[1, 2], [3, 4]], [[5, 6], [7, 8]], None],
        "pair": [{"p": 1, "q": "x"}, None, {"p": 2, "q": "y"}],
        "flag": [True, None, False],
        "kind": pl.Series(["u", "v", None], dtype=pl.Categorical),
        "day": pl.Series([1, 2, None]).cast(pl.Date),
        "bytes": [b"", b"x", None],
        "nothing": [None, None, None],
    }
)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([[1], [2, 3]], [[1, 2], [3]]),
        ([[[1], [2]]], [[[1, 2]]]),
        ([None], [0]),
        ([None], [""]),
        ([[]], [None]),
        ([[None]], [[0]]),
        ([0.0], [float("nan")]),
        ([1], [2]),
    ],
)
def test_other_contents_have_other_digests(first: list[object], second: list[object]) -> None:
    one, two = pl.DataFrame({"x": first}), pl.DataFrame({"x": second})
    assert table_digest(one) != table_digest(two)


def test_the_digest_sees_order_types_and_names() -> None:
    digest = table_digest(MIXED)
    assert digest == table_digest(MIXED.clone()) == table_digest(pl.concat([MIXED[:1], MIXED[1:]]))
    others = [
        MIXED[::-1],
        MIXED[:2],
        MIXED.rename({"text": "words"}),
        MIXED.with_columns(pl.col("number").cast(pl.Float32)),
        MIXED.select(reversed(MIXED.columns)),
    ]
    assert len({digest, *map(table_digest, others)}) == 6


cells = st.none() | st.lists(st.none() | st.lists(st.integers(-5, 5), max_size=3), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(cells, min_size=1, max_size=4), st.lists(cells, min_size=1, max_size=4))
def test_nested_lists_have_one_digest_exactly_when_they_are_alike(first: list[object], second: list[object]) -> None:
    kind = pl.List(pl.List(pl.Int64))
    one, two = (pl.DataFrame({"x": pl.Series(cell, dtype=kind)}) for cell in (first, second))
    assert (table_digest(one) == table_digest(two)) == (first == second)


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write_parquet_atomic(table(), path)
    write_parquet_atomic(table(label=[1, 1, 1]), path)
    assert pl.read_parquet(path)["label"].to_list() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write_parquet_atomic(table(), path)
    before = path.read_bytes()
    unwritable = pl.DataFrame({"x": [object()]})
    with pytest.raises(CurationError, match="cannot be written"):
        write_parquet_atomic(unwritable, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["out.parquet"]
    with pytest.raises(CurationError, match="cannot be written"):
        write_parquet_atomic(table(), tmp_path / "missing" / "out.parquet")
