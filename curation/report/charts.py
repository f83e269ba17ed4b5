"""Small charts as inline SVG: pure functions from numbers to markup.

Every x is a percentage of the chart's width and every y a pixel, with no viewBox, so that text and strokes keep their
size from a phone to a wide screen. Colours are classes of the style sheet, which follow light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from curation.report.model import Curve, Distribution, Figure, Series, measured
from curation.report.wording import count, in_unit, number, printable, tick_labels

BINS = 56
PANEL_HEIGHT = 92  # pixels, bars only
LEAST_BAR = 2  # pixels, so that a single row can be seen beside hundreds
PANEL_HEAD = 28  # pixels above the bars for the panel's name and its top tick
AXIS_HEIGHT = 24
CURVE_TOP = 8
CURVE_HEIGHT = 140
INTERVAL_MIDDLE = 9


def ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], at most `at_most` of them."""
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        return [low]
    magnitude = 10.0 ** math.floor(math.log10((high - low) / at_most))
    for step in (magnitude * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= at_most:
            return [tick * step for tick in range(first, last + 1)]
    return [low, high]


def bin_edges(scores: np.ndarray, threshold: float | None, bins: int = BINS) -> np.ndarray:
    """Equal bins over the finite `scores` with an edge exactly on the threshold, so that no bar straddles it.

    Args:
        scores: float [n], finite, n at least 1.
        threshold: an edge, inside the range or not; None = none.
        bins: about how many bins.

    Returns:
        float64 [at least 2], ascending.
    """
    low, high = float(scores.min()), float(scores.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    width = (high - low) / bins
    if not 1e-12 * max(abs(low), abs(high)) < width < math.inf:  # all the same up to rounding
        return np.array([low - 0.5, high + 0.5])
    anchor = low if threshold is None else threshold
    first, last = math.floor((low - anchor) / width), math.ceil((high - anchor) / width)
    edges = anchor + width * np.arange(first, last + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def histogram(distribution: Distribution) -> Markup:
    """Kept rows above, flagged rows below, on one score axis but each with its own height, and the threshold through both.

    Rows known to be wrong are the dark lower part of each bar.
    """
    every = np.asarray(distribution.scores, np.float64)
    finite = np.isfinite(every)
    scores, flagged = every[finite], np.asarray(distribution.flagged, bool)[finite]
    if scores.size == 0:
        return Markup('<p class="empty">No finite score to draw.</p>')
    wrong = None if distribution.wrong is None else np.asarray(distribution.wrong, bool)[finite]
    threshold = distribution.threshold if measured(distribution.threshold) else None
    edges = bin_edges(scores, threshold)
    panel, base = PANEL_HEAD + PANEL_HEIGHT, 2 * (PANEL_HEAD + PANEL_HEIGHT)
    parts = [
        _panel("Kept", "kept", scores[~flagged], None if wrong is None else wrong[~flagged], edges, 0),
        _panel("Flagged", "flagged", scores[flagged], None if wrong is None else wrong[flagged], edges, panel),
        _x_axis(float(edges[0]), float(edges[-1]), base),
    ]
    cut = ""
    if threshold is not None:
        at = _share(threshold, edges[0], edges[-1])
        side, shift = ("end", -5) if at > 60 else ("start", 5)
        parts.append(
            Markup(
                '<line class="cut" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1}" y2="{2}"/>'
                '<text class="strong" x="{0:.2f}%" dx="{3}" y="{4}" text-anchor="{5}">threshold {6}</text>'
            ).format(at, PANEL_HEAD - 6, base, shift, PANEL_HEAD + 8, side, number(threshold))
        )
        cut = f", threshold {number(threshold)}"
    left_out = (
        f", {count(every.size - scores.size)} rows without a finite score left out" if scores.size < every.size else ""
    )
    title = (
        f"Histogram of {distribution.signal}: {count((~flagged).sum())} kept and {count(flagged.sum())} flagged rows, "
        f"scores from {number(float(scores.min()))} to {number(float(scores.max()))}{cut}{left_out}"
    )
    return _svg(title, base + AXIS_HEIGHT, parts)


def line_chart(curve: Curve) -> Markup:
    """The lines of one metric over training; the first dashed, the last solid."""
    x = np.concatenate([np.asarray(series.x, np.float64) for series in curve.series] or [np.empty(0)])
    y = np.concatenate([np.asarray(series.y, np.float64) for series in curve.series] or [np.empty(0)])
    drawn = np.isfinite(x) & np.isfinite(y)
    if not drawn.any():
        return Markup('<p class="empty">Nothing was recorded.</p>')
    x_low, x_high = float(x[drawn].min()), float(x[drawn].max())
    y_ticks, (y_low, y_high) = _padded(float(y[drawn].min()), float(y[drawn].max()))
    base = CURVE_TOP + CURVE_HEIGHT
    heights = [base - CURVE_HEIGHT * _share(tick, y_low, y_high) / 100 for tick in y_ticks]
    rule = Markup('<line class="rule" x1="0%" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>')
    label = Markup('<text x="100%" y="{:.1f}" text-anchor="end">{}</text>')
    labels = [
        label.format(height + 4, text) for height, text in zip(heights, tick_labels(y_ticks, curve.unit), strict=True)
    ]
    parts = [rule.format(height) for height in heights]
    lines = [
        _segments(series, (x_low, x_high), (y_low, y_high), _line_class(position, len(curve.series)))
        for position, series in enumerate(curve.series)
    ]
    parts.append(
        Markup(
            '<svg aria-hidden="true" y="{}" width="100%" height="{}" viewBox="0 0 100 100" preserveAspectRatio="none">'
            "{}</svg>"
        ).format(CURVE_TOP, CURVE_HEIGHT, Markup("").join(lines))
    )
    counted = bool(np.all(x[drawn] == np.round(x[drawn])))  # epochs and steps have no halves
    parts.append(_x_axis(x_low, x_high, base, whole=counted))
    ends = "; ".join(f"{series.name} ends at {in_unit(_last(series), curve.unit)}" for series in curve.series)
    return Markup('<div class="plot"><svg width="44" height="{}" aria-hidden="true">{}</svg>{}</div>').format(
        base + AXIS_HEIGHT,
        Markup("").join(labels),
        _svg(f"{curve.metric} by {curve.x_label}: {ends}", base + AXIS_HEIGHT, parts),
    )


def legend(curve: Curve) -> list[tuple[Markup, str, str]]:
    """(line sample, name, last value) of every line."""
    return [
        (
            Markup(
                '<svg class="sample" width="26" height="10" aria-hidden="true">'
                '<line class="{}" x1="0" x2="26" y1="5" y2="5"/></svg>'
            ).format(_line_class(position, len(curve.series))),
            series.name,
            in_unit(_last(series), curve.unit),
        )
        for position, series in enumerate(curve.series)
    ]


def shared_domain(figures: Sequence[Figure]) -> tuple[float, float] | None:
    """One axis for the intervals of several figures: their range and a little air. None if there is nothing to compare.

    Figures without an interval do not count. A lone one is only comparable with zero, where it is a difference.
    Fractions never leave [0, 1]; differences always include zero.
    """
    drawn = [figure for figure in figures if _has_interval(figure)]
    unit = drawn[0].unit if drawn else "number"
    if len(drawn) < (1 if unit == "difference" else 2):
        return None
    ends = [float(end) for figure in drawn for end in (figure.low, figure.value, figure.high) if end is not None]
    if unit == "difference":
        ends.append(0.0)
    low, high = min(ends), max(ends)
    air = 0.08 * (high - low) or 0.5
    low, high = low - air, high + air
    return (max(low, 0.0), min(high, 1.0)) if unit == "fraction" else (low, high)


def interval(figure: Figure, domain: tuple[float, float]) -> Markup:
    """A dot on a bar: the estimate and its interval on the axis `domain`; a tick marks zero where that lies inside.

    Decorative: the same numbers stand beside it as text.
    """
    if not (measured(figure.value) and measured(figure.low) and measured(figure.high)):
        return Markup("")
    low, value, high = (_share(end, *domain) for end in (figure.low, figure.value, figure.high))
    parts = [Markup('<line class="rule" x1="0%" x2="100%" y1="{0}" y2="{0}"/>').format(INTERVAL_MIDDLE)]
    if domain[0] < 0 < domain[1]:
        zero = _share(0.0, *domain)
        parts.append(Markup('<line class="zero" x1="{0:.2f}%" x2="{0:.2f}%" y1="1" y2="17"/>').format(zero))
    parts.append(
        Markup(
            '<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="{m}" y2="{m}"/>'
            '<circle class="dot" cx="{:.2f}%" cy="{m}" r="4"/>'
        ).format(low, high, value, m=INTERVAL_MIDDLE)
    )
    return Markup('<svg class="interval" width="100%" height="18" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def heat_levels(counts: np.ndarray, steps: int = 6) -> np.ndarray:
    """Background level of every cell of a [K, K] table: 0 for none, 1..`steps` by the square root of the share of the largest.

    Returns:
        int64 [K, K].
    """
    largest = counts.max(initial=0)
    if largest <= 0:
        return np.zeros(counts.shape, np.int64)
    levels: np.ndarray = np.ceil(steps * np.sqrt(np.maximum(counts, 0) / largest))
    return levels.astype(np.int64)


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        height, printable(title), Markup("").join(parts)
    )


def _has_interval(figure: Figure) -> bool:
    return measured(figure.value) and measured(figure.low) and measured(figure.high)


def _share(value: float, low: float, high: float) -> float:
    """Where `value` lies between `low` and `high`, in per cent."""
    return 50.0 if not high > low else min(100.0, max(0.0, 100 * (value - low) / (high - low)))


def _panel(name: str, css: str, scores: np.ndarray, wrong: np.ndarray | None, edges: np.ndarray, top: float) -> Markup:
    """One histogram: bars of all rows, the rows known to be wrong as the dark part at their foot."""
    counts = np.histogram(scores, edges)[0]
    tallest, base = max(1, int(counts.max())), top + PANEL_HEAD + PANEL_HEIGHT
    known = np.zeros_like(counts) if wrong is None else np.histogram(scores[wrong], edges)[0]
    bars = []
    for left, right, total, dark in zip(edges[:-1], edges[1:], counts, known, strict=True):
        x = _share(left, edges[0], edges[-1])
        width = _share(right, edges[0], edges[-1]) - x
        for rows, bar in ((total, css), (dark, "wrong")):  # the dark part lies over the foot of the whole bar
            if rows:
                height = max(LEAST_BAR, PANEL_HEIGHT * rows / tallest)
                shape = Markup('<rect class="{}" x="{:.2f}%" width="{:.2f}%" y="{:.1f}" height="{:.1f}"/>')
                bars.append(shape.format(bar, x, 0.9 * width, base - height, height))
    truth = "" if wrong is None else f", {count(wrong.sum())} known wrong"
    scale = f"tallest bar {count(tallest)}" if scores.size else ""
    return Markup(
        '{}<line class="axis" x1="0%" x2="100%" y1="{b}" y2="{b}"/>'
        '<text class="strong" x="0" y="{t}">{}: {}{}</text><text x="100%" y="{t}" text-anchor="end">{}</text>'
    ).format(Markup("").join(bars), name, count(scores.size), truth, scale, b=base, t=top + 14)


def _x_axis(low: float, high: float, base: float, whole: bool = False) -> Markup:
    """Tick labels under `base`; the outermost turn inwards so that none leaves the chart."""
    values = [tick for tick in ticks(low, high) if not whole or tick == round(tick)]
    marks = []
    for tick, text in zip(values, tick_labels(values, "number"), strict=True):
        at = _share(tick, low, high)
        anchor = "start" if at < 4 else "end" if at > 96 else "middle"
        marks.append(
            Markup(
                '<line class="axis" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1}" y2="{2}"/>'
                '<text x="{0:.2f}%" y="{3}" text-anchor="{4}">{5}</text>'
            ).format(at, base, base + 4, base + 18, anchor, text)
        )
    return Markup("").join(marks)


def _padded(low: float, high: float) -> tuple[list[float], tuple[float, float]]:
    """Ticks and axis of a metric; a constant one gets an axis around it."""
    size = max(abs(low), abs(high))
    air = 0.05 * (high - low) if high - low > 1e-9 * size else 0.05 * (size or 1.0)
    axis = (low - air, high + air)
    return ticks(*axis, at_most=4), axis


def _line_class(position: int, lines: int) -> str:
    """The last line is the one that counts, the ones before it are what it is compared with."""
    return "line after" if position == lines - 1 else f"line before{position or ''}"


def _segments(series: Series, x_axis: tuple[float, float], y_axis: tuple[float, float], css: str) -> Markup:
    """The line in a 100 by 100 box, broken where a value is missing; a lone point becomes a short stroke."""
    runs: list[list[str]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if measured(x) and measured(y):
            runs[-1].append(f"{_share(x, *x_axis):.2f},{100 - _share(y, *y_axis):.2f}")
        elif runs[-1]:
            runs.append([])
    drawn = [run if len(run) > 1 else [run[0], run[0]] for run in runs if run]
    shape = Markup('<polyline class="{}" points="{}"/>')
    return Markup("").join(shape.format(css, " ".join(run)) for run in drawn)


def _last(series: Series) -> float | None:
    """The last value that was measured."""
    return next((y for y in reversed(series.y) if measured(y)), None)
