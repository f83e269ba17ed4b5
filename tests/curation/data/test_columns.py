from __future__ import annotations

from pathlib import Path

import polars as pl

from curation.data import TableData
from tests.curation.data.builders import feature_frame, table_problems, write


def test_messages_name_rows_without_ids_by_their_place(tmp_path: Path) -> None:
    counted = "(counting from 1, header not counted)"
    frame = feature_frame().with_columns(part=pl.Series(["train"] * 39 + ["validation"]))
    broken = frame.with_columns(
        pl.Series("y", [None, *[0, 1] * 19, 7], dtype=pl.Int64),
        pl.Series("width", [1.0, None, *range(38)], strict=False),
    )
    no_label, no_number = table_problems(write(broken, tmp_path), "y", features=["width"])
    assert f"no label in row 1 {counted}" in no_label
    assert f"a number is missing, not finite or beyond 3.4e38 in row 2 {counted}" in no_number
    unseen = frame.with_columns(pl.Series("y", [0, 1, 1] * 13 + [7]))
    (found,) = table_problems(write(unseen, tmp_path), "y", features=["width"], split="part")
    assert f"label 7 is in validation, in row 40 {counted}, but on no training row" in found


def test_a_column_of_numbers_with_a_few_words_is_not_left_out_silently(tmp_path: Path) -> None:
    size = [str(row) for row in range(40)]
    size[3], size[9], size[11] = "?", "n/a", "?"
    path = write(feature_frame().with_columns(size=pl.Series(size)), tmp_path, "table.csv")
    (found,) = table_problems(path, "y")
    assert "column 'size' holds numbers but for '?', 'n/a' in rows 4, 10, 12 (counting from 1" in found
    assert "name the columns to use in features" in found
    assert "rows with ids 'a3', 'a9', 'a11'" in table_problems(path, "y", "key")[0]
    assert TableData(path, "y", "key", features=["width"]).model_defaults()["input_shape"] == (1,)
