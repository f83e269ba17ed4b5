from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from curation.data.images import array_images, file_images

NAMES = ["a", "b", "c"]
PIXELS = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4) * 10


def arrays(cells: object, shape: list[int] | None = None, dtype: object = None) -> tuple[np.ndarray, list[str]]:
    column = cells if isinstance(cells, pl.Series) else pl.Series("im", cells, dtype=dtype, strict=False)  # type: ignore[arg-type]
    return array_images(column, NAMES, "t: column 'im'", shape)


def test_bytes_in_arrays_and_in_nested_lists_are_the_same_images() -> None:
    expected = PIXELS[:, None].astype(np.float32) / 255
    for column in (
        pl.Series(PIXELS),
        pl.Series(PIXELS.tolist()),
        pl.Series(PIXELS.tolist(), dtype=pl.List(pl.List(pl.UInt8))),
    ):
        images, problems = arrays(column)
        assert problems == []
        assert images.dtype == np.float32 and np.array_equal(images, expected)


def test_fractions_stay_as_they_are() -> None:
    images, problems = arrays((PIXELS / 1000.0).tolist())
    assert problems == [] and np.allclose(images[:, 0], PIXELS / 1000)


def test_channels_come_first() -> None:
    colour = np.random.default_rng(0).integers(0, 256, size=(3, 5, 4, 3), dtype=np.uint8)
    last, problems = arrays(colour.tolist())
    first, _ = arrays(np.moveaxis(colour, 3, 1).tolist())
    assert problems == [] and last.shape == (3, 3, 5, 4) and np.array_equal(first, last)


def test_flat_cells_take_a_shape() -> None:
    images, problems = arrays(PIXELS.reshape(3, 8).tolist(), [2, 4])
    assert problems == [] and np.array_equal(images, PIXELS[:, None].astype(np.float32) / 255)
    assert "set image_shape" in arrays(PIXELS.reshape(3, 8).tolist())[1][0]
    assert "[3, 3] does not fit cells of shape [8]" in arrays(PIXELS.reshape(3, 8).tolist(), [3, 3])[1][0]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([[[1, 2]], None, [[3, 4]]], "no image in row with id 'b'"),
        ([[[1, 2]], [[1, 2, 3]], [[3, 4]]], "not of the shape of the first, [1, 2]: row with id 'b'"),
        ([[[1, 2]], [[1], [2]], [[3, 4, 5]]], "rows with ids 'b', 'c'"),
        ([[[1, 2], [3]], [[1, 2]], [[1, 2]]], "one rectangular shape"),
        ([[], [], []], "holds nothing; expected nested lists"),
        ([[[1, None]], [[1, 2]], [[1, 2]]], "missing or not a finite number: row with id 'a'"),
        ([[[0.5, float("nan")]], [[1.0, 2.0]], [[1.0, float("inf")]]], "not a finite number: rows with ids 'a', 'c'"),
        ([[[1, 2]], [[1, 300]], [[-1, 2]]], "bytes, 0 to 255: rows with ids 'b', 'c'"),
        ([[["x"]], [["y"]], [["z"]]], "expected nested lists of numbers"),
        ([1, 2, 3], "expected nested lists of numbers"),
        ([[[[1], [2]], [[3], [4]]]] * 3, None),
        ([[[[1, 2]], [[3, 4]]]] * 3, "images of shape [2, 1, 2]"),
    ],
)
def test_cells_that_are_no_images(cells: list[object], words: str | None) -> None:
    images, problems = arrays(cells)
    if words is None:
        assert problems == [] and images.shape == (3, 1, 2, 2)
    else:
        assert len(problems) == 1 and words in problems[0] and problems[0].startswith("t: column 'im'")


def test_arrays_with_missing_rows_are_named_too() -> None:
    column = pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.UInt8, 2))
    assert "no image in row with id 'b'" in arrays(column, [1, 2])[1][0]


def save(folder: Path, name: str, pixels: np.ndarray) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return name


def files(paths: list[str | None], root: Path, **options: object) -> tuple[np.ndarray, list[str]]:
    return file_images(pl.Series(paths, dtype=pl.String), NAMES, "t: column 'im'", root, **options)  # type: ignore[arg-type]


def test_grey_and_colour_files(tmp_path: Path) -> None:
    grey = [save(tmp_path, f"sub/{row}.png", PIXELS[row]) for row in range(3)]
    images, problems = files(grey, tmp_path)  # type: ignore[arg-type]
    assert problems == [] and np.array_equal(images, PIXELS[:, None].astype(np.float32) / 255)
    assert files(grey, tmp_path, mode="RGB")[0].shape == (3, 3, 2, 4)  # type: ignore[arg-type]
    colour = save(tmp_path, "colour.png", np.stack([PIXELS[0]] * 3, axis=-1))
    mixed, problems = files([grey[0], colour, grey[1]], tmp_path)
    assert problems == [] and mixed.shape == (3, 3, 2, 4)
    assert np.array_equal(mixed[0], mixed[1])


def test_files_are_resized_and_turned_upright(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{row}.png", np.full((4 + row, 6), 51, dtype=np.uint8)) for row in range(3)]
    (problem,) = files(paths, tmp_path)[1]  # type: ignore[arg-type]
    assert "images of several sizes: 4x6, but 5x6 and others in rows with ids 'b', 'c'; set image_size" in problem
    images, problems = files(paths, tmp_path, size=(2, 3))  # type: ignore[arg-type]
    assert problems == [] and images.shape == (3, 1, 2, 3) and np.allclose(images, 0.2)

    turned = Image.fromarray(PIXELS[0])
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "turned.png", exif=exif)
    assert files(["turned.png"] * 3, tmp_path)[0].shape == (3, 1, 4, 2)


def test_every_file_that_does_not_open_is_named(tmp_path: Path) -> None:
    good = save(tmp_path, "good.png", PIXELS[0])
    whole = (tmp_path / good).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    (tmp_path / "text.png").write_text("not an image")
    problems = files(["cut.png", good, "text.png"], tmp_path)[1]
    assert len(problems) == 1
    assert "does not open as an image: rows with ids 'a', 'c'" in problems[0] and "cut.png" in problems[0]
    problems = files(["gone.png", None, " "], tmp_path)[1]
    assert len(problems) == 2 and problems[1].endswith("no path: rows with ids 'b', 'c'")
    assert f"no such file; paths start from {tmp_path}: row with id 'a'; the first: gone.png" in problems[0]


def test_no_path_leaves_the_folder(tmp_path: Path) -> None:
    outside = save(tmp_path, "outside.png", PIXELS[0])
    root = tmp_path / "data"
    inside = save(root, "in.png", PIXELS[0])
    for path in (f"../{outside}", str(tmp_path / outside), f"sub/../../{outside}"):
        (problem,) = files([inside, path, inside], root)[1]
        assert "leaves the folder" in problem and "row with id 'b'" in problem and "image_root" in problem
    assert files([inside, str(root / inside), "x/../in.png"], root)[1] == []


def test_wide_pixels_are_refused_not_clipped(tmp_path: Path) -> None:
    save(tmp_path, "deep.png", np.full((2, 4), 40_000, dtype=np.uint16))
    (problem,) = files(["deep.png"] * 3, tmp_path)[1]
    assert "more than 8 bits" in problem
