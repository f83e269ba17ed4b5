"""Images of a table, as arrays in its cells or as files named in them, to one float32 array in [0, 1] for bytes.

Axes: N rows, C channels (1 or 3), H and W pixels. Every function returns its array and a list of problems; with
problems the array is empty.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageOps

from curation.examples import RowProblems, contents_of, name_rows, name_rows_where

MODES = ("L", "RGB")
# Eight bits a channel; the wider modes would be clipped without a word when converted.
GREY_MODES, COLOUR_MODES = ("1", "L", "LA"), ("P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "PA", "RGBX", "La", "RGBa")
# A broken PNG header is a SyntaxError to Pillow.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

NOTHING = np.zeros((0, 1, 1, 1), dtype=np.float32)


def array_images(
    column: pl.Series, names: Sequence[object], where: str, shape: Sequence[int] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Images held as nested lists or arrays [H, W], [C, H, W] or [H, W, C], or flat with ``shape`` saying which.

    Whole numbers are bytes, 0 to 255, and divided by 255; fractions stay as they are.

    Args:
        column: N cells.
        names: what to call the rows in messages.
        where: what to call the column in messages.
        shape: of flat cells.

    Returns:
        float32 [N, C, H, W], and the problems.
    """
    leaf, depth = column.dtype, 0
    while isinstance(leaf, (pl.List, pl.Array)):
        leaf, depth = leaf.inner, depth + 1  # type: ignore[assignment]
    if depth == 0 or not leaf.is_numeric():
        return NOTHING, [f"{where} holds {contents_of(leaf)}; expected nested lists of numbers or paths of image files"]
    values, problems = _stacked(column, leaf, names, where)
    if problems:
        return NOTHING, problems
    if shape is not None:
        if values.ndim != 2 or values.shape[1] != math.prod(shape):
            return NOTHING, [f"{where}: image_shape {list(shape)} does not fit cells of shape {list(values.shape[1:])}"]
        values = values.reshape(len(values), *shape)
    elif values.ndim == 2:
        return NOTHING, [f"{where}: cells are flat lists of {values.shape[1]}; set image_shape, e.g. [height, width]"]
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[1] not in (1, 3) and values.shape[3] in (1, 3):
        values = np.moveaxis(values, 3, 1)
    if values.ndim != 4 or values.shape[1] not in (1, 3) or 0 in values.shape:
        return NOTHING, [
            f"{where}: images of shape {list(values.shape[1:])}; expected [H, W], or 1 or 3 channels of them"
        ]

    pixels = np.ascontiguousarray(values, dtype=np.float32)
    rows = pixels.reshape(len(pixels), -1)
    wrong: dict[str, Any] = {"a pixel is missing or not a finite number": ~np.isfinite(rows).all(axis=1)}
    if leaf.is_integer():
        wrong["whole numbers must be bytes, 0 to 255"] = ((rows < 0) | (rows > 255)).any(axis=1)
        pixels /= 255
    for problem, condition in wrong.items():
        if condition.any():
            problems.append(f"{where}: {problem}: {name_rows_where(names, condition)}")
    return (NOTHING, problems) if problems else (pixels, [])


def _stacked(column: pl.Series, leaf: pl.DataType, names: Sequence[object], where: str) -> tuple[np.ndarray, list[str]]:
    """The cells as one array, or the rows that are missing or of another shape than the first."""
    missing = column.is_null()
    if missing.any():
        return NOTHING, [f"{where}: no image in {name_rows_where(names, missing)}"]
    first = _shape(column[0])
    if first is not None:
        with suppress(pl.exceptions.PolarsError):  # some rows differ: which ones, polars does not say
            return column.cast(pl.Array(leaf, first)).to_numpy(), []
    shapes = [_shape(cell) for cell in column]
    other = [names[row] for row, shape in enumerate(shapes) if shape is None or shape != first]
    expected = "one rectangular shape" if first is None else f"the shape of the first, {list(first)}"
    return NOTHING, [f"{where}: images are not of {expected}: {name_rows(other)}"]


def _shape(cell: pl.Series) -> tuple[int, ...] | None:
    """The shape of one cell, None when it is ragged or empty."""
    try:
        shape = np.shape(cell.to_list())
    except ValueError:
        return None
    return None if 0 in shape else shape


def file_images(
    column: pl.Series,
    names: Sequence[object],
    where: str,
    root: Path,
    size: Sequence[int] | None = None,
    mode: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Images in files, turned upright as their EXIF data say.

    Args:
        column: N paths, relative to ``root`` and inside it.
        names: what to call the rows in messages.
        where: what to call the column in messages.
        root: the folder no path may leave; links inside it are followed.
        size: (H, W) to resize all to; None: they must be of one size.
        mode: ``"L"`` (grey) or ``"RGB"``; None: grey when all files are.

    Returns:
        float32 [N, C, H, W] in [0, 1], and the problems.
    """
    root = Path(os.path.abspath(root))
    images: list[Image.Image] = []
    failed = RowProblems()
    for row, path in zip(names, column.to_list(), strict=True):
        try:
            images.append(_open(root, path, size, mode))
        except _Refused as error:
            failed.add(error.problem, row, error.reason)
    problems = failed.sentences(where)
    if problems:
        return NOTHING, problems
    if mode is None:
        mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    sizes = [image.size for image in images]
    other = [row for row, found in enumerate(sizes) if found != sizes[0]]
    if other:
        (w0, h0), (w1, h1) = sizes[0], sizes[other[0]]
        rows = name_rows([names[row] for row in other])
        return NOTHING, [
            f"{where}: images of several sizes: {h0}x{w0}, but {h1}x{w1} and others in {rows}; set image_size to [height, width] "
            "to resize them all"
        ]
    pixels = np.stack([np.asarray(image.convert(mode)) for image in images])  # [N, H, W] or [N, H, W, 3]
    pixels = pixels[:, None] if mode == "L" else np.moveaxis(pixels, 3, 1)
    return np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255), []


class _Refused(Exception):
    """A path that gives no image.

    Attributes:
        problem: what kind of problem it is; rows with the same one are named together.
        reason: the path and the details.
    """

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem)
        self.problem, self.reason = problem, reason


def _open(root: Path, name: str | None, size: Sequence[int] | None, mode: str | None) -> Image.Image:
    """The image in one file, upright, of the size asked for and in ``mode``; None: in that of the two it has less loss in."""
    if name is None or not name.strip():
        raise _Refused("no path", "")
    path = Path(os.path.abspath(root / name))
    if not path.is_relative_to(root):
        raise _Refused(f"the path leaves the folder {root}; set image_root to one that holds all images", name)
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except FileNotFoundError as error:
        raise _Refused(f"there is no such file; paths start from {root}", name) from error
    except UNREADABLE as error:
        raise _Refused("the file does not open as an image", f"{name} ({error})") from error
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise _Refused("more than 8 bits a channel; convert the file", f"{name} has mode {image.mode}")
    image = image.convert(mode or ("L" if image.mode in GREY_MODES else "RGB"))
    return image if size is None else image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
