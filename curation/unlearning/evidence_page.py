"""One self-contained HTML page from an evidence file, and from nothing else: no script, no external resource, all escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from curation.report import charts, wording
from curation.report.model import Curve, Figure, Series, measured
from curation.report.render import policy, style_sheet, templates
from curation.unlearning.evidence import read
from curation.unlearning.evidence_words import PURGED
from lorif_core.atomic import file_digest, write_bytes

NAME = "evidence.html"
RECORDS = 200
"""Records shown; the file has them all."""
MODULES = 40
WRONG = "chance of the wrong answers, r / (1 + r): 0.5 = as likely as right ones"
"""Name of the axis of truth ratios."""
HASH = 16
"""Characters of a hash shown where several stand side by side."""


def write(path: Path) -> Path:
    """Render the evidence file at `path` and put the page beside it; returns the page's path.

    Raises:
        DataError: there is no such file, or it is none.
    """
    page = path.with_name(NAME)
    write_bytes(page, render(read(path), file_digest(path)).encode())
    return page


def render(evidence: Mapping[str, Any], digest: str) -> str:
    """The page of what an evidence file says, `digest` being the sha256 of its bytes."""
    style = style_sheet()
    meanings = {one["name"]: one["meaning"] for one in evidence["verdicts"]}
    order = list(meanings)
    records = evidence["records"]
    counts = {name: sum(record["verdict"] == name for record in records) for name in order}
    norms = sorted(evidence["change"]["norms"].items(), key=lambda item: -item[1])
    return (
        _environment()
        .get_template("evidence.html.j2")
        .render(
            evidence=evidence,
            digest=digest,
            style=Markup(style),
            policy=policy(style),
            verdicts=meanings,
            measures={one["name"]: one["meaning"] for one in evidence["measures"]},
            tier=next(one["meaning"] for one in evidence["tiers"] if one["name"] == evidence["tier"]),
            counts={name: rows for name, rows in counts.items() if rows},
            records=sorted(records, key=lambda record: order.index(record["verdict"]))[:RECORDS],
            norms=norms[:MODULES],
            left_out={"records": max(0, len(records) - RECORDS), "norms": max(0, len(norms) - MODULES)},
            curves=_curves(evidence),
            collateral=_collateral(evidence),
            purged=_purged(evidence["purge"] or {}),
        )
    )


def _curves(evidence: Mapping[str, Any]) -> list[Curve]:
    """Losses over the unlearning, and how the truth ratios of the removed records are distributed."""
    history, ratios, rejected = evidence["history"], evidence["truth_ratios"], evidence["rejected"]
    steps = [one["step"] for one in history]
    losses = [
        Series(name, steps, [_number(one[key]) for one in history])
        for name, key in (("records that stay", "retain_loss"), ("removed records", "forget_loss"))
    ]
    names = {"before": "before", "retrained": "never saw them"}
    names |= {"rejected": "unlearned, rejected", "after": "trained again"} if rejected else {"after": "after"}
    shares = [_shares(name, ratios[key]) for key, name in names.items() if ratios[key]]
    course = "Loss during the unlearning that was rejected" if rejected else "Loss during unlearning"
    return [
        *([Curve(f"{course}, nats a token", losses, x_label="optimizer step")] if history else []),
        *([Curve("Share of records up to a truth ratio", shares, "fraction", WRONG)] if shares else []),
    ]


def _shares(name: str, ratios: Iterable[float]) -> Series:
    """The share of records up to each truth ratio r, as a staircase over r / (1 + r): a few large ones do not squeeze the rest."""
    ordered = sorted(ratio / (1 + ratio) for ratio in ratios)
    x = [value for value in ordered for _ in range(2)]
    y = [(position + step) / len(ordered) for position in range(len(ordered)) for step in (0, 1)]
    return Series(name, x, y)


def _collateral(evidence: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Markup]]:
    """Each record that suffered, with its loss after as a dot on the way from its loss before, all on one axis from 0."""
    rows = evidence["collateral"]
    top = max((max(row["loss_before"], row["loss_after"]) for row in rows), default=0) or 1
    return [(row, charts.interval(_way(row), (0, top))) for row in rows]


def _purged(purge: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a purge came to, each figure after what it is of."""
    found = []
    for name, words in PURGED.items():
        value = purge.get(name)
        if isinstance(value, list):
            found.append((words, ", ".join(value) or "none"))
        elif value is not None:
            found.append((words, wording.count(value)))
    return found


def _way(row: Mapping[str, Any]) -> Figure:
    low, high = sorted((row["loss_before"], row["loss_after"]))
    return Figure("loss", row["loss_after"], low, high)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _pairs(options: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested options as dotted names and values."""
    found: list[tuple[str, Any]] = []
    for name, value in options.items():
        found += _pairs(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


def _first(text: Any, length: int = HASH) -> str:
    """The first characters of a hash."""
    return str(text)[:length]


def _sentence(name: str) -> str:
    """A verdict's name in words ("Consistent with retrain")."""
    return name.replace("_", " ").capitalize()


def _p_value(value: float | None) -> str:
    """A p-value; very small ones are told apart by nothing that was measured."""
    return "< 0.0001" if measured(value) and value < 1e-4 else wording.number(value)


def _interval(low: float | None, high: float | None) -> str:
    return f"{wording.number(low)} to {wording.number(high)}" if measured(low) and measured(high) else wording.DASH


def _worse(record: Mapping[str, float]) -> float:
    return record["loss_after"] - record["loss_before"]


def _last(curve: Curve) -> Sequence[tuple[Markup, str]]:
    """Sample of each line and its name."""
    return [(sample, name) for sample, name, _ in charts.legend(curve)]


@cache
def _environment() -> jinja2.Environment:
    environment = templates(Path(__file__).parent)
    environment.filters.update(
        count=wording.count,
        fixed=wording.fixed,
        number=wording.number,
        signed=wording.signed,
        first=_first,
        sentence=_sentence,
        p_value=_p_value,
        worse=_worse,
        pairs=_pairs,
    )
    environment.globals.update(interval=_interval, line_chart=charts.line_chart, lines=_last)
    return environment
