from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from curation.data import TableData
from tests.curation.data.builders import decisions, feature_frame, table_problems, write


def all_inputs(data: TableData) -> torch.Tensor:
    return torch.stack([data.train_dataset[row][0] for row in range(len(data.train_dataset))])


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "table.jsonl"])
def test_every_format_gives_the_same_data(tmp_path: Path, name: str) -> None:
    frame = feature_frame()
    data = TableData(write(frame, tmp_path, name), "y", "key")
    assert data.payload_kind == "features" and data.classes == [0, 1]
    assert data.examples.columns == ["example_id", "label", "width", "height", "split"]
    assert data.model_defaults() == {"input_shape": (2,), "num_classes": 2}
    train = frame.filter(pl.col("key").is_in(data.train_ids()))
    expected = torch.from_numpy(train.select("width", "height").to_numpy().astype(np.float32))
    assert torch.equal(all_inputs(data), expected)
    assert data.digest() == TableData(write(frame, tmp_path, "again.parquet"), "y", "key").digest()


def test_features_can_be_named_and_keep_that_order(tmp_path: Path) -> None:
    frame = feature_frame().with_columns(flag=pl.col("width") > 1)
    path = write(frame, tmp_path)
    data = TableData(path, "y", "key", features=["height", "flag", "width"])
    assert data.examples.columns[2:5] == ["height", "flag", "width"]
    row = frame.row(by_predicate=pl.col("key") == data.train_ids()[1], named=True)
    assert data.show(1).features == {name: row[name] for name in ("height", "flag", "width")}
    assert data.train_dataset[1][0].tolist() == pytest.approx([row["height"], float(row["flag"]), row["width"]])


def test_right_labels_and_ids_never_become_features(tmp_path: Path) -> None:
    frame = feature_frame().with_columns(number=pl.int_range(40), truth=pl.col("y"), true_label=pl.col("y"))
    data = TableData(write(frame, tmp_path), "y", "number", true_label="truth")
    assert data.contents.payload_columns == ("width", "height")
    assert "true_label" in data.examples.columns


def test_rows_without_ids_are_numbered_and_example_id_is_found(tmp_path: Path) -> None:
    frame = feature_frame()
    data = TableData(write(frame, tmp_path), "y")
    assert data.examples["example_id"].to_list() == list(range(40))
    data = TableData(write(frame.rename({"key": "example_id"}), tmp_path), "y")
    assert data.examples["example_id"].to_list() == frame["key"].to_list()


@pytest.mark.parametrize(
    ("labels", "classes", "back"),
    [
        (pl.Series(["no", "yes"] * 20), ["no", "yes"], pl.String),
        (pl.Series(["no", "yes"] * 20, dtype=pl.Categorical), ["no", "yes"], pl.Categorical),
        (pl.Series([7, 3] * 20, dtype=pl.UInt8), [3, 7], pl.UInt8),
        (pl.Series([True, False] * 20), [0, 1], pl.Boolean),
        (pl.Series([2.0, 10.0] * 20), [2, 10], pl.Float64),
    ],
)
def test_labels_of_every_kind(tmp_path: Path, labels: pl.Series, classes: list[object], back: Any) -> None:
    data = TableData(write(feature_frame().with_columns(labels.alias("y")), tmp_path), "y", "key")
    assert data.classes == classes
    assert data.examples.schema["label"] == (pl.String if isinstance(classes[0], str) else pl.Int64)
    first = data.train_ids()[0]
    other = classes[1 - data.train_labels()[0]]
    cleaned = data.cleaned_table(decisions({first: ("relabel", other)}, data.examples.schema["label"]))
    assert cleaned.schema["y"] == back
    assert cleaned.filter(pl.col("key") == first)["y"].cast(data.examples.schema["label"]).item() == other


def test_whole_numbers_of_64_bits_without_a_sign_are_told_apart(tmp_path: Path) -> None:
    hashes = pl.Series(np.arange(40, dtype=np.uint64) + np.uint64(2**63 - 20))
    data = TableData(write(feature_frame().with_columns(key=hashes), tmp_path), "y", "key")
    assert data.examples["example_id"].to_list() == [str(number) for number in hashes]


def test_a_split_column_decides(tmp_path: Path) -> None:
    words = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    frame = feature_frame().with_columns(part=pl.Series(words))
    data = TableData(write(frame, tmp_path), "y", "key", split="part")
    assert data.train_ids() == frame["key"][:20].to_list() and len(data.validation_dataset) == 10
    assert data.examples["split"].to_list() == words
    table = {"a3": ("drop", None)}
    assert data.cleaned_table(decisions(table, pl.Int64)).equals(frame.filter(pl.col("key") != "a3"))


def test_a_drawn_split_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    frame = feature_frame(200, 4)
    data = TableData(write(frame, tmp_path), "y", "key")
    turned = TableData(write(frame[::-1], tmp_path), "y", "key")
    assert set(data.train_ids()) == set(turned.train_ids())
    other = TableData(write(frame, tmp_path), "y", "key", seed=1)
    assert set(data.train_ids()) != set(other.train_ids())
    shorter = TableData(write(frame[4:], tmp_path), "y", "key")
    assert len(set(shorter.train_ids()) - set(data.train_ids())) <= 4


def test_a_label_of_one_row_stays_in_training(tmp_path: Path) -> None:
    frame = feature_frame().with_columns(y=pl.Series([5] + [0, 1, 2] * 13))
    data = TableData(write(frame, tmp_path), "y", "key", validation_fraction=0.9)
    assert data.classes == [0, 1, 2, 5]


def test_a_validation_file(tmp_path: Path) -> None:
    frame = feature_frame()
    path = write(frame.head(30).with_columns(only_here=pl.lit("x")), tmp_path)
    other = write(frame.tail(10).with_columns(pl.col("height").cast(pl.Float64)), tmp_path, "validation.csv")
    data = TableData(path, "y", "key", validation_path=other)
    assert data.train_ids() == frame["key"][:30].to_list() and len(data.validation_dataset) == 10
    cleaned = data.cleaned_table(decisions({"a0": ("drop", None)}, pl.Int64))
    assert cleaned.height == 29 and "only_here" in cleaned.columns
    numbered = TableData(path, "y", features=["width"], validation_path=other)
    assert numbered.examples["example_id"].to_list() == list(range(40))


def test_a_validation_file_that_does_not_fit(tmp_path: Path) -> None:
    frame = feature_frame()
    path = write(frame.head(30), tmp_path)
    same = write(frame.slice(25, 10), tmp_path, "same.parquet")
    twice = table_problems(path, "y", "key", validation_path=same)[0]
    assert "the same id on several rows: 'a25', 'a26', 'a27', 'a28', 'a29'; ids must be unique" in twice
    lacking = write(frame.tail(10).drop("width", "y"), tmp_path, "lacking.parquet")
    assert len(table_problems(path, "y", "key", validation_path=lacking)) == 2
    words = write(frame.tail(10).with_columns(pl.col("y").cast(pl.String)), tmp_path, "words.parquet")
    assert (
        "label holds text here, whole numbers in the training file"
        in table_problems(path, "y", "key", validation_path=words)[0]
    )
    unseen = write(frame.tail(10).with_columns(y=pl.Series([0, 0, *range(2, 10)])), tmp_path, "unseen.parquet")
    found = table_problems(path, "y", "key", validation_path=unseen)
    assert len(found) == 6 and "label 2 is in validation, in row with id 'a32', but on no training row" in found[0]
    assert "3 more labels of validation are on no training row" in found[5]
    assert "validation_path is the same file" in table_problems(path, "y", validation_path=path)[0]


def test_noise_moves_the_labels_given_to_true_label(tmp_path: Path) -> None:
    frame = feature_frame(100, 4)
    noise = {"kind": "feature", "rate": 0.2, "seed": 0}
    data = TableData(write(frame, tmp_path), "y", "key", noise=noise)
    assert data.examples["true_label"].to_list() == frame["y"].to_list()
    cleaned = data.cleaned_table(decisions({}, pl.Int64))
    assert (cleaned["y"] != frame["y"]).sum() == round(0.2 * len(data.train_dataset))
    assert "true_label" not in cleaned.columns
    assert (
        "leave out noise or true_label"
        in table_problems(write(frame, tmp_path), "y", "key", true_label="height", noise=noise)[0]
    )


def test_noise_that_removes_a_class(tmp_path: Path) -> None:
    frame = feature_frame().with_columns(y=pl.Series([5] + [0, 1] * 19 + [0]))
    noise = {"kind": "feature", "rate": 0.1}
    assert "leaves no training row labelled 5" in table_problems(write(frame, tmp_path), "y", "key", noise=noise)[0]


@pytest.mark.parametrize("kind", ["uniform", "feature"])
def test_texts(tmp_path: Path, kind: str) -> None:
    frame = pl.DataFrame(
        {"text": [f"a good film {row}" if row % 2 else f"a bad film {row}" for row in range(40)], "y": ["-", "+"] * 20}
    )
    path = write(frame, tmp_path, "table.jsonl")
    data = TableData(path, "y", text="text", max_tokens=30, buckets=500, noise={"kind": kind, "rate": 0.1})
    inputs = all_inputs(data)
    assert inputs.shape == (len(data.train_dataset), 29) and inputs.dtype == torch.int64  # what the longest text takes
    assert 0 < inputs.max() < 500 and data.classes == ["+", "-"]
    of_text = {"vocab_buckets": 500, "pad_id": 0, "max_tokens": 30, "tokenizer": "hashed"}
    assert data.model_defaults() == {"input_shape": (29,), "num_classes": 2} | of_text
    validation = write(pl.DataFrame({"text": ["fine"], "y": ["+"]}), tmp_path, "validation.csv")
    with_file = TableData(path, "y", text="text", max_tokens=400, validation_path=validation)
    assert with_file.validation_dataset[0][0].shape == with_file.train_dataset[0][0].shape == (29,)
    assert data.show(2).text == frame["text"][data.train_ids()[2]]
    assert data.digest() != TableData(path, "y", text="text", max_tokens=31, buckets=500).digest()


def test_image_arrays_and_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 5, 4), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{row}.png")
    frame = feature_frame().with_columns(
        array=pl.Series(pixels),
        lists=pl.Series(pixels.tolist()),
        path=pl.Series([f"images/{n}.png" for n in range(40)]),
    )
    path = write(frame, tmp_path)
    versions = [TableData(path, "y", "key", image=name) for name in ("array", "lists", "path")]
    assert len({data.digest() for data in versions}) == 1
    for data in versions:
        assert data.model_defaults() == {"input_shape": (1, 5, 4), "num_classes": 2}
        image = data.show(0).image
        assert image is not None and np.array_equal(image, pixels[int(str(data.train_ids()[0])[1:])])
    elsewhere = write(frame, tmp_path / "images")
    moved = TableData(elsewhere, "y", "key", image="path", image_root=tmp_path, image_size=[2, 2], image_mode="RGB")
    assert moved.model_defaults()["input_shape"] == (3, 2, 2)


def test_pixels_may_be_lists_in_one_file_and_arrays_in_the_other(tmp_path: Path) -> None:
    pixels = np.arange(40 * 6, dtype=np.uint8).reshape(40, 2, 3)
    frame = feature_frame().with_columns(image=pl.Series(pixels))
    path = write(frame.head(30), tmp_path)
    other = write(frame.tail(10), tmp_path, "validation.parquet")
    listed = frame.tail(10).with_columns(pl.Series("image", pixels[30:].tolist()))
    as_lists = write(listed.select("key", "y", "image"), tmp_path, "validation.jsonl")
    versions = [TableData(path, "y", "key", image="image", validation_path=file) for file in (other, as_lists)]
    assert versions[0].digest() == versions[1].digest()
    deeper = frame.tail(10).with_columns(pl.Series("image", pixels[30:, None]))
    in_channels = write(deeper, tmp_path, "deeper.parquet")
    assert TableData(path, "y", "key", image="image", validation_path=in_channels).digest() == versions[0].digest()
    narrow = listed.with_columns(pl.col("image").list.eval(pl.element().list.head(2)))
    found = table_problems(path, "y", "key", image="image", validation_path=write(narrow, tmp_path, "narrow.parquet"))
    assert "rows have shape [1, 2, 2], in" in found[0] and "[1, 2, 3]" in found[0]


def test_all_problems_of_the_options_and_columns_come_at_once(tmp_path: Path) -> None:
    path = write(feature_frame(), tmp_path)
    options = {"max_tokens": 0, "buckets": 1, "image_shape": [1], "image_size": [0, 3], "image_mode": "CMYK"}
    options |= {"image": "photo", "tokenizer": ""}
    found = table_problems(path, "label", "ids", features=["width", "depth"], batch_size=0, seed=-1, **options)
    assert len(found) == 14 and all(text.startswith(str(path)) for text in found)
    for name in ("label", "ids", "depth"):
        lacking = [text for text in found if text.startswith(f"{path}: there is no column {name!r}")]
        assert lacking[0].endswith("; the columns are key, y, width, height, note")


def test_all_problems_of_the_rows_come_at_once(tmp_path: Path) -> None:
    frame = feature_frame().with_columns(
        pl.when(pl.col("key") == "a3").then(None).otherwise("y").alias("y"),
        pl.when(pl.col("key") == "a7").then(float("nan")).otherwise("width").alias("width"),
        pl.when(pl.col("key") == "a9").then(None).otherwise("height").alias("height"),
        pl.when(pl.col("key") == "a5").then(pl.lit("a4")).otherwise("key").alias("key"),
    )
    found = table_problems(write(frame, tmp_path), "y", "key")
    assert len(found) == 4
    for text, column, row in zip(found, ("key", "y", "width", "height"), ("a4", "a3", "a7", "a9"), strict=True):
        assert f"table.parquet: column {column!r}" in text and repr(row) in text


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"y": 1}, {}, "every training row is labelled 1"),
        (
            {"y": pl.Series(np.linspace(0, 1, 40))},
            {},
            "'y' holds 0.02564102564102564 or the like in rows with ids 'a1', 'a2', 'a3', 'a4', 'a5' and 33 more; labels must be",
        ),
        (
            {"width": float("inf")},
            {},
            "column 'width': a number is missing, not finite or beyond 3.4e38 in rows with ids 'a0', 'a1'",
        ),
        ({"width": 1e300}, {}, "a number is missing, not finite or beyond 3.4e38"),
        ({"width": pl.int_range(40) + 1.6e12}, {}, "subtract their mean"),
        ({}, {"features": ["note"]}, "'note' holds text; a feature must be numbers"),
        ({}, {"features": []}, "features is empty"),
        ({}, {"features": "width"}, "features must be a list of names of columns, got 'width'"),
        ({}, {"features": [5]}, "features must be a list of names of columns, got [5]"),
        ({}, {"id": 5}, "id must be the name of a column, got 5"),
        (
            {"size": pl.when(pl.col("key") == "a3").then(pl.lit("?")).otherwise(pl.lit("7"))},
            {"features": ["size"]},
            "'size' holds text; a feature must be numbers, and '?' or the like is in row with id 'a3'",
        ),
        ({}, {"features": ["width", "y"]}, "'y' is named for 2 uses"),
        ({}, {"text": "note", "features": ["width"]}, "give one of features, text and image; got features, text"),
        ({"label": 1.0}, {"features": ["label"]}, "cannot be called"),
        (
            {"note": pl.when(pl.col("key") == "a2").then(pl.lit(" ")).otherwise("note")},
            {"text": "note"},
            "empty text in row with id 'a2'",
        ),
        ({}, {"text": "width"}, "column 'width' holds fractional numbers; expected text"),
        (
            {"note": pl.lit("\x1c")},
            {"text": "note"},
            "a text without any token in rows with ids 'a0', 'a1', 'a2', 'a3', 'a4' and 35 more",
        ),
        ({}, {"tokenizer": "./bert"}, "tokenizer is for texts; name their column in text"),
        ({}, {"text": "note", "image_size": [2, 2]}, "image_size is for images; name their column in image"),
        ({}, {"image": "width"}, "expected nested lists of numbers"),
        ({}, {"image": "note"}, "rows with ids 'a0', 'a1', 'a2', 'a3', 'a4' and 35 more; the first: seen"),
        ({}, {"image": "note", "image_shape": [2, 2]}, "image_shape is for cells with numbers"),
        ({}, {"split": "note"}, "'seen' in rows with ids 'a0', 'a1', 'a2', 'a3', 'a4' and 35 more"),
        ({"part": pl.lit("train")}, {"split": "part"}, "no row is left for validation"),
        ({"part": pl.lit("test")}, {"split": "part"}, "no row is in the train split"),
        ({}, {"true_label": "note"}, "they must be of one kind"),
        ({}, {"id": "width"}, "'width' holds fractional numbers; ids must be text or whole numbers"),
        ({}, {"split": "note", "validation_path": "v.csv"}, "not both"),
        (
            {"from": pl.Series([[1]] * 40)},
            {"source": "from"},
            "'from' holds lists; a source must be text or a number",
        ),
    ],
)
def test_wrong_tables(tmp_path: Path, change: dict[str, Any], options: dict[str, Any], words: str) -> None:
    path = write(feature_frame().with_columns(**change), tmp_path)
    found = table_problems(path, "y", **{"id": "key", **options})
    assert any(words in text for text in found), found
    assert all(text.startswith((str(path), "v.csv")) for text in found)


def test_files_that_are_missing_or_empty(tmp_path: Path) -> None:
    gone = [tmp_path / "a.csv", tmp_path / "b.csv"]
    found = table_problems(gone[0], "y", validation_path=gone[1])
    assert found == [f"{path}: there is no such file" for path in gone]
    assert "the table has no rows" in table_problems(write(feature_frame().clear(), tmp_path), "y", "key")[0]
    only_words = write(feature_frame().select("key", "y", "note"), tmp_path)
    assert "no column of numbers without another use to be a feature" in table_problems(only_words, "y", "key")[0]


def test_problems_of_the_payload_and_of_the_classes_come_together(tmp_path: Path) -> None:
    frame = feature_frame().with_columns(y=pl.lit("x"), note=pl.lit(""))
    found = table_problems(write(frame, tmp_path), "y", "key", text="note")
    assert len(found) == 2 and "every training row" in found[0] and "empty text" in found[1]


def test_the_file_is_never_changed(tmp_path: Path) -> None:
    path = write(feature_frame(), tmp_path)
    before = path.read_bytes()
    data = TableData(path, "y", "key", noise={"kind": "uniform", "rate": 0.2})
    data.cleaned_table(decisions({"a0": ("keep", None)}, pl.Int64))
    assert path.read_bytes() == before
