"""One self-contained HTML page from a `SelectReport`: no script, no external resource, everything escaped."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from curation.report import wording
from curation.report.model import Figure, measured
from curation.report.render import environment, policy, style_sheet
from curation.selection_report.model import SelectReport, Share
from lorif_core.atomic import write_bytes

_FOLDER = Path(__file__).parent
BAR = 9
"""Pixels of the height of a bar."""


def render(report: SelectReport) -> str:
    """The page as HTML; its Content-Security-Policy allows its one style sheet and `data:` images, nothing else."""
    style = style_sheet(_FOLDER / "select.css")
    template = environment(_FOLDER).get_template("select.html.j2")
    return template.render(report=report, style=Markup(style), policy=policy(style), lead=lead(report), bars=bars)


def write(report: SelectReport, path: Path) -> Path:
    """Render `report` and put it at `path` whole or not at all; returns `path`."""
    write_bytes(path, render(report).encode())
    return path


def lead(report: SelectReport) -> list[str]:
    """What the run found, in the sentences that open the page."""
    chosen, pool = report.n_selected, report.n_pool
    sentences = [
        f"{wording.count(chosen)} of {wording.count(pool)} rows ({wording.percent(chosen / pool)}) were selected by "
        f"{report.strategy} for {wording.count(report.n_target)} target rows."
    ]
    if not report.accuracy:
        return [*sentences, "Nothing was fine-tuned, so it is not known what the selection is worth."]
    mine = report.accuracy[0]
    if not report.advantage:
        return [
            *sentences,
            f"Fine-tuned on them, the model gets {wording.figure_value(mine)} of the held-out target rows right.",
        ]
    best = min(report.advantage, key=lambda figure: figure.value if measured(figure.value) else 0.0)
    sentences.append(
        f"Fine-tuned on them, the model gets {wording.figure_value(mine)} of {wording.count(report.n_held_out)} held-out target "
        f"rows right; against the best control, {best.name}, that is {wording.figure_value(best)}{_interval(report, best)}."
    )
    if measured(best.low) and measured(best.high) and best.low <= 0 <= best.high:
        sentences.append("That interval includes zero, so this difference may be chance.")
    return sentences


def bars(share: Share, report: SelectReport) -> Markup:
    """Two bars, one above the other: the source's share of the pool and of the selection. The numbers stand beside them."""
    shape = Markup('<rect class="{}" x="0" y="{}" width="{:.2f}%" height="{}"/>')
    parts = [
        shape.format(name, place * (BAR + 2), 100 * rows / max(1, of), BAR)
        for place, (name, rows, of) in enumerate(
            [("kept", share.pool, report.n_pool), ("picked", share.selected, report.n_selected)]
        )
    ]
    return Markup('<svg class="shares" width="100%" height="{}" aria-hidden="true">{}</svg>').format(
        2 * BAR + 2, Markup("").join(parts)
    )


def _interval(report: SelectReport, figure: Figure) -> str:
    text = wording.figure_interval(figure)
    return f" ({wording.percent_level(report.confidence)} interval {text})" if text else ""
