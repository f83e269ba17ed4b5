from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import CurationError, DataError
from curation.examples import (
    check_examples,
    content_hashes,
    name_rows,
    read_table,
    table_digest,
    write_parquet_atomic,
)


def table(**columns: object) -> pl.DataFrame:
    base = {"example_id": ["a", "b", "c"], "label": [0, 1, 0], "split": ["train", "train", "validation"]}
    return pl.DataFrame({**base, **columns}, strict=False)


def problems(frame: pl.DataFrame) -> list[str]:
    with pytest.raises(DataError) as error:
        check_examples(frame, where="t.csv")
    return error.value.problems


def test_importing_the_tables_loads_no_heavy_library() -> None:
    code = "import sys, curation, curation.examples, curation.data.noise, curation.data.edits; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "sklearn", "mlflow", "prefect"} & set(done.stdout.split())


def test_a_good_table_passes() -> None:
    check_examples(table(), where="t.csv")
    check_examples(table(example_id=[1, 2, 3], label=["x", "y", "x"], true_label=["x", None, "y"]), where="t.csv")


def test_every_problem_is_listed_with_its_rows() -> None:
    found = problems(
        table(example_id=["a", None, "a"], label=[None, 1, 0], split=["train", "dev", None], true_label=["0", "1", "0"])
    )
    assert len(found) == 5
    assert "no id in row 1 (counted from 0)" in found[0]
    assert "same id" in found[1] and "'a'" in found[1]
    assert "no label in row 'a'" in found[2]
    assert "'dev'" in found[3] and "'#1'" in found[3]
    assert "'true_label' holds String" in found[4]
    assert all(text.startswith("t.csv: column") for text in found)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"example_id": [1.5, 2.0, 3.0]}, "ids must be text or whole numbers"),
        ({"example_id": ["a", " ", "c"]}, "no id in row 1"),
        ({"label": [0.5, 1.0, 2.0]}, "labels must be text or whole numbers"),
        ({"label": ["x", "", "y"]}, "no label in row 'b'"),
        ({"split": [1, 2, 3]}, "'split' holds Int64"),
    ],
)
def test_wrong_columns(columns: dict[str, object], words: str) -> None:
    (problem,) = problems(table(**columns))
    assert words in problem


def test_missing_columns_are_listed_with_those_there_are() -> None:
    found = problems(table().drop("label", "split"))
    assert found == [f"t.csv: there is no column {name!r}; the columns are example_id" for name in ("label", "split")]
    assert "no rows" in problems(table().clear())[0]


def test_at_most_five_rows_are_named() -> None:
    assert name_rows(["a"]) == "row 'a'"
    assert name_rows([1, 2]) == "rows 1, 2"
    assert name_rows(list(range(5))) == "rows 0, 1, 2, 3, 4"
    assert name_rows(list(range(12))) == "rows 0, 1, 2, 3, 4 and 7 more"


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


def test_a_hash_belongs_to_the_content_alone() -> None:
    hashes = content_hashes(MIXED, MIXED.columns)
    assert hashes.n_unique() == 3 and hashes.str.len_chars().to_list() == [32] * 3
    shuffled = MIXED[[2, 0, 1]].with_columns(other=pl.lit(1))
    assert content_hashes(shuffled, MIXED.columns).to_list() == hashes.gather([2, 0, 1]).to_list()
    as_arrays = MIXED.with_columns(
        pl.col("image").cast(pl.Array(pl.UInt8, (2, 2)), strict=False), pl.col("number").cast(pl.Float32)
    )
    assert content_hashes(as_arrays, MIXED.columns).to_list() == hashes.to_list()


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
def test_other_contents_have_other_hashes_and_digests(first: list[object], second: list[object]) -> None:
    one, two = pl.DataFrame({"x": first}), pl.DataFrame({"x": second})
    assert content_hashes(one, ["x"]).to_list() != content_hashes(two, ["x"]).to_list()
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
def test_nested_lists_hash_alike_exactly_when_they_are_alike(first: list[object], second: list[object]) -> None:
    kind = pl.List(pl.List(pl.Int64))
    one, two = (pl.DataFrame({"x": pl.Series(cell, dtype=kind)}) for cell in (first, second))
    assert (table_digest(one) == table_digest(two)) == (first == second)
    hashes = content_hashes(one, ["x"]).to_list() + content_hashes(two, ["x"]).to_list()
    everything = first + second
    for i, left in enumerate(everything):
        for j, right in enumerate(everything):
            assert (hashes[i] == hashes[j]) == (left == right)


def test_content_hashes_of_a_missing_column() -> None:
    with pytest.raises(DataError, match="no column 'pixels'"):
        content_hashes(MIXED, ["text", "pixels"])


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "ndjson"])
def test_tables_of_every_format_are_read(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"id": [1, 2], "text": ["a", 'b "c", d\ne'], "x": [0.5, None]})
    path = tmp_path / f"[t].{suffix}"
    {"parquet": frame.write_parquet, "csv": frame.write_csv}.get(suffix, frame.write_ndjson)(path)
    assert read_table(path).equals(frame)
    assert read_table(str(path)).equals(frame)


def test_a_late_row_of_another_type_does_not_break_reading(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x\n" + "1\n" * 2000 + "0.5\n")
    assert read_table(tmp_path / "t.csv")["x"].dtype == pl.Float64
    (tmp_path / "t.jsonl").write_text('{"x": 1}\n' * 2000 + '{"x": 0.5}\n')
    assert read_table(tmp_path / "t.jsonl")["x"].dtype == pl.Float64


def test_leading_zeros_of_a_csv_are_kept(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,zip,n,zero\n7,007,1,0\n8,123,-2,0\n")
    frame = read_table(tmp_path / "t.csv")
    assert frame.to_dict(as_series=False) == {"id": [7, 8], "zip": ["007", "123"], "n": [1, -2], "zero": [0, 0]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.csv", None, "there is no such file"),
        ("t.xlsx", b"x", "cannot read a .xlsx table"),
        ("table", b"x", "cannot read a nameless table"),
        ("t.parquet", b"not parquet", "not a readable parquet file"),
        ("t.csv", b"", "not a readable csv file"),
        ("t.csv", b"a,b\n1,2,3\n", "not a readable csv file"),
        ("t.csv", b"a,b\n\xff\xfe,1\n", "not a readable csv file"),
        ("t.jsonl", b'{"a": 1}\n{"a": ', "not a readable jsonl file"),
        ("t.jsonl", b"[1, 2]\n", "not a readable jsonl file"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(path)
    assert str(path) in str(error.value) and words in str(error.value)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a file"):
        read_table(tmp_path)


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


def test_row_names_are_python_values() -> None:
    frame = table(example_id=np.array([5, 5, 6]))
    assert "row 5;" in problems(frame)[0]
