"""The two tables that need work before they fit a page: the class confusion and the features of a row's neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.report.charts import heat_levels
from curation.report.model import Confusion, Label, ReportRow
from curation.report.wording import DASH, aligned, clipped

MAX_CLASSES = 20
MAX_PAIRS = 5
MAX_FEATURES = 12
FEATURE_LENGTH = 40  # characters of a feature that is text


@dataclass(frozen=True)
class ConfusionCell:
    """Flagged rows of one pair; `level` 0..6 is the cell's background, 0 on the diagonal."""

    rows: int
    level: int
    diagonal: bool


@dataclass(frozen=True)
class ConfusionLine:
    """One given label: its cells, its flagged rows over ALL suggestions and its training rows (None = unknown)."""

    label: Label
    cells: list[ConfusionCell]
    flagged: int
    size: int | None


@dataclass(frozen=True)
class ConfusionTable:
    """What the page shows of a `Confusion`.

    Attributes:
        columns: the labels shown, in code order.
        lines: one a label shown.
        pairs: the most frequent pairs (given, suggested, rows) off the diagonal, largest first.
        n_left_out: classes not shown because others have more flagged rows.
    """

    columns: list[Label]
    lines: list[ConfusionLine]
    pairs: list[tuple[Label, Label, int]]
    n_left_out: int


def confusion_table(confusion: Confusion, max_classes: int = MAX_CLASSES) -> ConfusionTable:
    """The classes with the most flagged rows, as given or suggested label, and the pairs that occur most."""
    counts = np.asarray(confusion.counts, np.int64)
    classes = list(confusion.classes)
    involved = counts.sum(0) + counts.sum(1)  # [K]
    shown = np.sort(np.argsort(-involved, kind="stable")[:max_classes])
    off_diagonal = counts.copy()
    np.fill_diagonal(off_diagonal, 0)
    levels = heat_levels(off_diagonal[np.ix_(shown, shown)])
    lines = [
        ConfusionLine(
            classes[given],
            [
                ConfusionCell(int(counts[given, suggested]), int(levels[row, column]), given == suggested)
                for column, suggested in enumerate(shown)
            ],
            int(counts[given].sum()),
            None if confusion.class_sizes is None else int(confusion.class_sizes[given]),
        )
        for row, given in enumerate(shown)
    ]
    most = np.argsort(-off_diagonal, axis=None, kind="stable")[:MAX_PAIRS]
    cells = [divmod(int(cell), len(classes)) for cell in most]
    pairs = [(classes[g], classes[s], int(off_diagonal[g, s])) for g, s in cells if off_diagonal[g, s] > 0]
    return ConfusionTable([classes[code] for code in shown], lines, pairs, len(classes) - len(shown))


@dataclass(frozen=True)
class FeatureTable:
    """The features of a row and of its neighbours: one line a feature, the row itself first, then supporters, then opponents."""

    lines: list[tuple[str, list[str]]]
    n_left_out: int


def feature_table(row: ReportRow, max_features: int = MAX_FEATURES) -> FeatureTable:
    """The first `max_features` features of `row` beside the same features of its neighbours."""
    own = row.payload.features or {}
    others: Sequence[Mapping[str, Any]] = [near.payload.features or {} for near in (*row.supporters, *row.opponents)]
    lines = [
        (str(name), _cells([features.get(name) for features in (own, *others)])) for name in list(own)[:max_features]
    ]
    return FeatureTable(lines, max(0, len(own) - max_features))


def _cells(values: list[Any]) -> list[str]:
    """One feature's values: fractional numbers with the same decimals, whole ones as they are, anything else clipped."""
    if any(_is_fractional(value) for value in values) and all(value is None or _is_number(value) for value in values):
        return aligned([None if value is None else float(value) for value in values])
    return [DASH if value is None else clipped(str(value), FEATURE_LENGTH) for value in values]


def _is_fractional(value: Any) -> bool:
    return isinstance(value, (float, np.floating))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
