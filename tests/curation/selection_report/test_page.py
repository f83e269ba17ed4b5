"""The page of a selection: what it says, and that nothing of the user's becomes markup."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np

from curation.data import Payload
from curation.report.model import Curve, Figure, Reproduction, Series
from curation.selection_report.model import Excluded, PoolRow, SelectReport, Share, TargetRow
from curation.selection_report.page import lead, render

EVIL = '<script>alert("x")</script>'


def report(payload: Payload) -> SelectReport:
    target = TargetRow("t-1", EVIL, 0.5, payload)
    rows = [
        PoolRow(f"{EVIL}-{place}", EVIL, EVIL, 1.0 / place, place, reason, payload, [target])
        for place, reason in ((1, f"because {EVIL}"), (2, None))
    ]
    curve = Curve("Accuracy", [Series(name, [1, 2], [0.1, 0.2]) for name in (EVIL, "b", "c", "d", "e")], "fraction")
    return SelectReport(
        title=EVIL,
        created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        data_name=EVIL,
        data_digest="0" * 64,
        model_name="Model",
        strategy="top_k",
        n_pool=20,
        n_selected=5,
        n_target=3,
        n_held_out=40,
        settings=[EVIL],
        found=[Figure("Rows selected", 5, unit="count")],
        accuracy=[Figure("top_k", 0.8, 0.7, 0.9, "fraction"), Figure("random", 0.6, 0.5, 0.7, "fraction")],
        advantage=[Figure("random", 0.2, 0.1, 0.3, "difference")],
        source_name="Source",
        sources=[Share(EVIL, 10, 5), Share("b", 10, 0)],
        curves=[curve],
        learning=[curve],
        excluded={"duplicate": 30},
        excluded_rows=[Excluded(EVIL, EVIL, EVIL)],
        top=rows[:1],
        bottom=rows[1:],
        reproduction=Reproduction(f"curate select {EVIL}", EVIL),
    )


def test_nothing_of_the_users_becomes_markup() -> None:
    kinds = [
        Payload("text", text=EVIL),
        Payload("features", features={EVIL: EVIL}),
        Payload("image", image=np.zeros((8, 8), dtype=np.uint8)),
    ]
    for payload in kinds:
        page = render(report(payload))
        assert "<script" not in page and "&lt;script" in page
        assert page.count("<article") == 2 and "29 more are in excluded.parquet" in page


def test_the_lead_names_the_best_control_and_says_when_chance_would_do() -> None:
    shown = report(Payload("text", text="x"))
    assert "random, that is +20.0 points (95% interval +10.0 to +30.0)" in lead(shown)[1] and len(lead(shown)) == 2
    close = replace(shown, advantage=[*shown.advantage, Figure("loss", 0.01, -0.1, 0.1, "difference")])
    assert "against the best control, loss" in lead(close)[1] and "may be chance" in lead(close)[2]
    assert "Nothing was fine-tuned" in lead(replace(shown, accuracy=[], advantage=[]))[1]
    assert "right." in lead(replace(shown, advantage=[]))[1]
