from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from curation.data.reading import read_table
from curation.errors import DataError


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


@pytest.mark.parametrize(("name", "text"), [("t.csv", "a,a_duplicated_0\n1,2\n"), ("t.jsonl", '{"a": 1}\n{"a": 2}\n')])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_and_both_line_ends_change_nothing(tmp_path: Path, name: str, text: str, ends: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="\n")
    plain = read_table(path)
    path.write_text(text, encoding="utf-8-sig", newline=ends)
    assert read_table(path).equals(plain) and plain["a"][0] == 1


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
        ("t.parquet", b"not parquet", "this is not a Parquet file, or it is damaged"),
        ("t.csv", b" \n", "the file is empty"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "row 2 (counting from 1, header not counted) has 3 cells, the header has 2"),
        ("t.csv", b"a,b\nx,1\n\xff\xfe,1\n", "line 3 is not UTF-8 text; save the file as UTF-8"),
        ("t.csv", b'a,b\n"x,1\ny,2\n', "the quotes are not closed"),
        ("t.csv", b"a;b\n1;2\n", "separated by semicolons; save the file with commas"),
        ("t.csv", b"a\tb\n1\t2\n", "separated by tabs"),
        ("t.csv", b"\nid,,label, \n1,2,3,4\n", "no name for column 2, 4 (counting from 1); name it or remove it"),
        ("t.csv", b"\xef\xbb\xbfx,y,x,y\n1,2,3,4\n", "more than one column is called 'x', 'y'; rename or remove"),
        ("t.csv", b"a,b\r1,2\r", "the lines end with a carriage return alone, as old Mac programs write them"),
        ("t.csv", b"\xef\xbb\xbf\n", "the file is empty"),
        ("t.jsonl", b"", "the file is empty"),
        ("t.jsonl", b'{"a": 1}\n{"a": ', "line 2 is not JSON (Expecting value); each line must hold one object"),
        ("t.jsonl", b'{"a": 1}\n{"a": NaN}', "line 2 is not JSON (NaN is no JSON value; write null"),
        ("t.jsonl", b'\n[{"a": 1}]\n', "line 2 holds a list; each line must hold one object"),
        ("t.jsonl", b'{"a": 1}\n{"a": [1]}\n', "'a' is a list in line 2, but not in line 1"),
        ("t.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ("t.jsonl", b'{"": 1, "a": 2}\n', "no name for column 1"),
        ("t.jsonl", b'{"a": 1}\r{"a": 2}\r', "the lines end with a carriage return alone"),
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
