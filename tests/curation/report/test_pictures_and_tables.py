"""Thumbnails, the confusion table, the feature table, and the contrast of the style sheet."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curation.report.model import Confusion, Neighbour, ReportRow
from curation.report.tables import confusion_table, feature_table
from curation.report.thumbnails import data_uri
from tests.curation.report.example import Shown

STYLE = (Path(__file__).parents[3] / "curation/report/page.css").read_text()


def decoded(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("shape", [(8, 8), (28, 28, 3), (1, 40)])
def test_a_small_picture_is_kept_pixel_for_pixel(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    uri = data_uri(image, 32)
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(decoded(uri), image)
    assert np.array_equal(
        decoded(data_uri(image.reshape(*shape[:2], -1)[:, :, :1], 32)), image.reshape(*shape[:2], -1)[:, :, 0]
    )


def test_a_large_picture_is_reduced_and_light() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    uri = data_uri(image, 72)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 8000
    assert decoded(uri).shape == (72, 48, 3)


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8), np.uint8)])
def test_another_kind_of_array_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected a uint8 image.*got"):
        data_uri(image, 72)


def test_confusion_keeps_the_busiest_classes_and_counts_the_rest() -> None:
    counts = np.zeros((5, 5), np.int64)
    counts[0, 4], counts[4, 0], counts[3, 4], counts[1, 2], counts[4, 4] = 9, 4, 2, 1, 7
    table = confusion_table(Confusion(list("abcde"), counts, np.array([10, 10, 10, 10, 0])), max_classes=3)
    assert table.columns == ["a", "d", "e"] and table.n_left_out == 2
    assert [[cell.rows for cell in line.cells] for line in table.lines] == [[0, 0, 9], [0, 0, 2], [4, 0, 7]]
    assert [line.flagged for line in table.lines] == [9, 2, 11] and [line.size for line in table.lines] == [10, 10, 0]
    assert (
        table.lines[0].cells[2].level == 6 and table.lines[2].cells[2].diagonal and table.lines[2].cells[2].level == 0
    )
    assert table.pairs == [("a", "e", 9), ("e", "a", 4), ("d", "e", 2), ("b", "c", 1)]


def test_features_line_up_with_the_neighbours() -> None:
    near = Neighbour(2, "b", 0.5, Shown("features", features={"size": 10.25, "town": "x" * 60}))
    own = Shown("features", features={"size": 1.5, "visits": 3, "town": "Ulm", "more": None, "smoker": True})
    table = feature_table(ReportRow(1, "a", "b", 1.0, "drop", "why", own, [near]), max_features=4)
    assert table.lines == [
        ("size", ["1.5", "10.2"]),
        ("visits", ["3", "\u2013"]),
        ("town", ["Ulm", "x" * 39 + "\u2026"]),
        ("more", ["\u2013", "\u2013"]),
    ]
    assert table.n_left_out == 1


def luminance(colour: np.ndarray) -> float:
    """Relative luminance of an sRGB colour in [0, 1]^3, as WCAG defines it."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_for_everybody(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[scheme]
    colour = {
        name: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        for name, value in re.findall(r"--(\w+): #(\w{6});", block)
    }
    heat = np.array([int(part) for part in re.search(r"--heat: (\d+) (\d+) (\d+)", block).groups()]) / 255
    for text in ("ink", "muted", "flag", "link"):
        for ground in ("paper", "panel"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    for bar in ("kept", "bar", "ink", "link"):
        assert contrast(colour[bar], colour["paper"]) >= 3, bar
    assert contrast(colour["ink"], colour["kept"]) >= 3  # known-wrong rows beside the others
    strongest = max(float(share) for share in re.findall(r"var\(--heat\) / (\S+)\)", STYLE))
    assert contrast(colour["ink"], strongest * heat + (1 - strongest) * colour["paper"]) >= 4.5
