"""One self-contained HTML page from a `CleanReport`: no script, no external resource, everything escaped."""

from __future__ import annotations

import base64
import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import get_args

import jinja2
from markupsafe import Markup

from curation.report import charts, tables, thumbnails, wording
from curation.report.model import CleanReport, Decision, measured
from lorif_core.atomic import write_bytes

logger = logging.getLogger(__name__)

ROW_SIDE = 192  # pixels of the longer side of a large picture: the row itself
NEIGHBOUR_SIDE = 72  # and of its neighbours
ROW_TEXT = 900  # characters shown of the row's text
NEIGHBOUR_TEXT = 180
_FOLDER = Path(__file__).parent


def render(report: CleanReport) -> str:
    """The page as HTML.

    Its Content-Security-Policy allows the one style sheet it carries (by hash) and `data:` images, nothing else, so
    that even markup which slipped through escaping could neither run nor load anything.

    Args:
        report: what to show.

    Raises:
        ValueError: a picture that is not uint8 [H, W] or [H, W, 3].
    """
    style = style_sheet()
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            style=Markup(style),
            policy=policy(style),
            confusion=None if report.confusion is None else tables.confusion_table(report.confusion),
            filters=_filters(report),
        )
    )


def style_sheet(*further: Path) -> str:
    """The style of every page, as light or dark as the reader's system, and what files of one page add to it."""
    return "".join(path.read_text(encoding="utf-8") for path in (_FOLDER / "page.css", *further))


def policy(style: str) -> str:
    """The Content-Security-Policy of a page that carries this one style sheet."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def write(report: CleanReport, path: Path) -> Path:
    """Render `report` and put it at `path` whole or not at all; returns `path`.

    Raises:
        OSError: the folder does not exist or cannot be written, or the disk is full; nothing is left behind.
    """
    page = render(report).encode("utf-8")
    write_bytes(path, page)
    logger.info("report of %d rows written to %s (%d bytes)", len(report.rows), path, len(page))
    return path


def _filters(report: CleanReport) -> list[tuple[str, str, int]]:
    """(key, words, rows) of every choice that would hide some of the rows and leave some; the style sheet does the hiding."""
    choices = [
        *((decision, decision, [row.decision == decision for row in report.rows]) for decision in get_args(Decision)),
        ("right", "label was right", [row.true_label == row.label for row in report.rows]),
    ]
    return [(key, words, sum(matches)) for key, words, matches in choices if 0 < sum(matches) < len(matches)]


def templates(*folders: Path) -> jinja2.Environment:
    """The templates of some folders: they escape every value and fail on a name that is not there."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=wording.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def environment(*folders: Path) -> jinja2.Environment:
    """The templates of reports: those of some folders, and those here that all pages share."""
    environment = templates(*folders, _FOLDER)
    environment.filters.update(
        count=wording.count,
        number=wording.number,
        aligned=wording.aligned,
        fixed=wording.fixed,
        percent=wording.percent,
        seconds=wording.seconds,
        level=wording.percent_level,
        clipped=wording.clipped,
        figure_value=wording.figure_value,
        figure_interval=wording.figure_interval,
    )
    environment.tests["measured"] = measured
    environment.tests["icon"] = thumbnails.is_icon
    environment.globals.update(
        lead=wording.lead,
        shared_domain=charts.shared_domain,
        interval=charts.interval,
        histogram=charts.histogram,
        line_chart=charts.line_chart,
        legend=charts.legend,
        feature_table=tables.feature_table,
        row_picture=lambda image: thumbnails.data_uri(image, ROW_SIDE),
        neighbour_picture=lambda image: thumbnails.data_uri(image, NEIGHBOUR_SIDE),
        row_text_length=ROW_TEXT,
        neighbour_text_length=NEIGHBOUR_TEXT,
    )
    return environment
