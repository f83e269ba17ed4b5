"""Numbers and user text as the page prints them; pure functions, no HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from curation.report.model import CleanReport, Figure, measured

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
NOT_MEASURED = "not measured"
_SUPERSCRIPT = str.maketrans("0123456789-", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b")

# What no HTML document may hold (controls, lone surrogates, noncharacters) and what would reorder the text around it.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def printable(value: Any) -> Any:
    """A string with every character that no page may hold replaced by U+FFFD; markup and other values as they are."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return value


def clipped(text: str, length: int) -> str:
    """`text` in at most `length` characters, an ellipsis for what was cut."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def count(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{value:,.0f}".replace("-", MINUS)


def number(value: float | None) -> str:
    """Three significant digits; very large and very small numbers as powers of ten."""
    if not measured(value):
        return DASH
    size = abs(value)
    if size == 0:
        return "0"
    if 1e-3 <= size < 1e4:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    elif size < 1e15 and value == round(value):
        text = f"{value:,.0f}"
    else:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}\N{MULTIPLICATION SIGN}10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return text.replace("-", MINUS)


def signed(value: float | None) -> str:
    """`number` with its sign written out."""
    text = number(value)
    return f"+{text}" if measured(value) and value > 0 else text


def fixed(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals, so that a column lines up."""
    if not measured(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def aligned(values: Sequence[float | None], sign: bool = False, digits: int = 3) -> list[str]:
    """Numbers with the same decimals, enough for so many digits of the largest; `sign` writes the plus out."""
    largest = max((abs(value) for value in values if measured(value)), default=0.0)
    if largest and not 1e-3 <= largest < 1e6:
        return [signed(value) if sign else number(value) for value in values]
    decimals = max(0, digits - 1 - math.floor(math.log10(largest))) if largest else 0
    texts = [fixed(value, decimals) for value in values]
    plus = [
        sign and measured(value) and value > 0 and text.strip("0.") != ""
        for value, text in zip(values, texts, strict=True)
    ]
    return [f"+{text}" if add else text for text, add in zip(texts, plus, strict=True)]


def percent(value: float | None) -> str:
    """A fraction in per cent, one decimal."""
    return f"{fixed(100 * value, 1)}%" if measured(value) else DASH


def points(value: float | None) -> str:
    """A difference of fractions in signed percentage points, one decimal."""
    if not measured(value):
        return DASH
    text = fixed(100 * value, 1)
    return text if text.startswith(MINUS) or text == "0.0" else f"+{text}"


def seconds(value: float | None) -> str:
    """A duration."""
    if not measured(value):
        return DASH
    if value >= 120:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{value:.1f} s"


def tick_labels(ticks: list[float], unit: str) -> list[str]:
    """Evenly spaced values with as many decimals as their distance needs, in per cent for the unit "fraction"."""
    scale, suffix = (100, "%") if unit == "fraction" else (1, "")
    steps = [abs(b - a) * scale for a, b in zip(ticks, ticks[1:], strict=False)]
    step = min(steps, default=max((abs(tick) * scale for tick in ticks), default=1.0))
    largest = max((abs(tick) * scale for tick in ticks), default=0.0)
    if largest >= 1e6 or step <= 1e-5:
        return [number(tick * scale) + suffix for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [fixed(tick * scale, decimals) + suffix for tick in ticks]


_UNITS = {"fraction": percent, "difference": points, "number": number, "seconds": seconds}


def in_unit(value: float | None, unit: str) -> str:
    """`value` printed in the unit of a `Figure`, a dash where it was not measured."""
    if unit == "count":
        return count(value) if measured(value) else DASH
    return _UNITS[unit](value)


def figure_value(figure: Figure) -> str:
    """The estimate with its unit."""
    if not measured(figure.value):
        return NOT_MEASURED
    text = in_unit(figure.value, figure.unit)
    return f"{text} points" if figure.unit == "difference" else text


def figure_interval(figure: Figure) -> str:
    """The interval as "low to high", empty without one."""
    if not (measured(figure.value) and measured(figure.low) and measured(figure.high)):
        return ""
    return f"{in_unit(figure.low, figure.unit)} to {in_unit(figure.high, figure.unit)}"


def lead(report: CleanReport) -> list[str]:
    """What the run found, in the sentences that open the page."""
    flagged, total = report.n_flagged, report.n_examples
    share = f" ({percent(flagged / total)})" if total else ""
    sentences = [f"{count(flagged)} of {count(total)} training labels look wrong{share}."]
    verbs = {"drop": "dropped", "relabel": "relabelled", "review": "left for a person to review"}
    done = [(report.decisions[key], verb) for key, verb in verbs.items() if report.decisions.get(key)]
    if len(done) == 1 and done[0][0] == flagged > 1:
        sentences.append(f"All of them were {done[0][1]}.")
    elif done:
        was = "was" if done[0][0] == 1 else "were"
        (first, verb), rest = done[0], done[1:]
        parts = [f"{count(first)} {was} {verb}", *(f"{count(rows)} {verb}" for rows, verb in rest)]
        sentences.append(f"Of these, {listed(parts)}.")
    return [*sentences, *_accuracy_sentences(report)]


def listed(parts: list[str]) -> str:
    """The parts as an English list: commas, and "and" before the last."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _accuracy_sentences(report: CleanReport) -> list[str]:
    """Accuracy before and after, and whether chance alone could explain the difference."""
    change = report.accuracy
    if change is None:
        return ["The model was not retrained, so no accuracy after cleaning is known."]
    if not (measured(change.before.value) and measured(change.after.value)):
        return ["The accuracy before or after cleaning was not measured."]
    if not any(report.decisions.get(key) for key in ("drop", "relabel")):
        return ["No row was changed, so the model after is the one before."]
    gain = change.difference
    interval = (
        f" ({percent_level(report.confidence)} interval {figure_interval(gain)})" if figure_interval(gain) else ""
    )
    sentences = [
        f"Retrained on the cleaned rows, accuracy on {count(change.n_validation)} validation rows goes from "
        f"{figure_value(change.before)} to {figure_value(change.after)}: {figure_value(gain)}{interval}."
    ]
    if measured(gain.low) and measured(gain.high) and gain.low <= 0 <= gain.high:
        sentences.append("That interval includes zero, so this difference may be chance.")
    if measured(gain.high) and gain.high < 0:
        sentences.append(
            "That is lower by more than chance explains: look at the flagged rows before you use the cleaned data."
        )
    return sentences


def percent_level(confidence: float) -> str:
    """A confidence level without needless decimals ("95%")."""
    return f"{100 * confidence:g}%"
