"""What the report of one `select` run shows, as plain frozen data; nothing here knows how it looks.

A score: POSITIVE = training on the row lowers the loss on the target. Proportions are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from curation.report.model import Curve, Figure, Label, Reproduction, Showable

LIMITATIONS = (
    "The intervals cover the chance in which weights and order of rows are drawn, not the choice of target rows: all fine-tunings "
    "are measured on the same held-out rows, and no selection was chosen by them.",
    "A score says what a small step on a row would do to the model that was indexed. It does not know what other chosen rows "
    "do already, nor what the model will be like at the end of training.",
)


@dataclass(frozen=True)
class Share:
    """One source, its rows in the pool and in the selection."""

    name: str
    pool: int
    selected: int


@dataclass(frozen=True)
class TargetRow:
    """A target row beside a row of the pool.

    Attributes:
        example_id: its id.
        label: its label; None where rows have none.
        score: of the pool's row for this one, positive = helps.
        payload: how to show it.
    """

    example_id: Label
    label: Label | None
    score: float
    payload: Showable


@dataclass(frozen=True)
class PoolRow:
    """A row of the pool.

    Attributes:
        example_id: its id.
        label: its label; None where rows have none.
        source: where it is from; None where that is not known.
        score: over all target groups.
        place: 1 for the highest score of the rows that could be chosen.
        reason: why it was selected; None where it was not.
        payload: how to show it.
        targets: target rows that choose, those that speak loudest first: for a row at the top those it helps most, for one at
            the bottom those it harms most.
    """

    example_id: Label
    label: Label | None
    source: str | None
    score: float
    place: int
    reason: str | None
    payload: Showable
    targets: Sequence[TargetRow]


@dataclass(frozen=True)
class Excluded:
    """A row that could not be chosen, why, and the id of the row it is like."""

    example_id: Label
    reason: str
    like: str


@dataclass(frozen=True)
class SelectReport:
    """The whole page.

    Attributes:
        title: name of the run.
        created_at: when it finished, with a time zone.
        data_name: what the pool is, in words or by path.
        data_digest: hex digest of the pool.
        model_name: class path and size in words.
        strategy: what chose.
        n_pool: rows of the pool.
        n_selected: of them chosen.
        n_target: target rows that chose.
        n_held_out: target rows that measured.
        settings: the configuration in words, one sentence an item.
        found: figures of the selection.
        accuracy: accuracy on the held-out target rows after each fine-tuning, that of the selection first.
        advantage: how much better the selection did than each control, unit "difference".
        source_name: what the sources are; empty: they are not known.
        sources: composition by source, largest in the pool first.
        curves: scores by rank, and composition by length where rows have one.
        learning: accuracy on the held-out target rows over the fine-tunings, the selection last.
        excluded: reason in a word -> rows.
        excluded_rows: some of them.
        top: rows of the highest scores, highest first.
        bottom: rows of the lowest, lowest first.
        reproduction: how to get the same again.
        confidence: level of every interval on the page.
        limitations: sentences.
    """

    title: str
    created_at: datetime
    data_name: str
    data_digest: str
    model_name: str
    strategy: str
    n_pool: int
    n_selected: int
    n_target: int
    n_held_out: int
    settings: Sequence[str]
    found: Sequence[Figure]
    accuracy: Sequence[Figure]
    advantage: Sequence[Figure]
    source_name: str
    sources: Sequence[Share]
    curves: Sequence[Curve]
    learning: Sequence[Curve]
    excluded: Mapping[str, int]
    excluded_rows: Sequence[Excluded]
    top: Sequence[PoolRow]
    bottom: Sequence[PoolRow]
    reproduction: Reproduction
    confidence: float = 0.95
    limitations: Sequence[str] = LIMITATIONS
