"""An evidence file as a run would write it, small."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from curation.unlearning import evidence_model as model
from curation.unlearning.evidence_model import Evidence
from curation.unlearning.ledger import Ledger
from curation.unlearning.requests import Batch

HASH = "0123456789abcdef" * 4
NAMES = (
    "forget_quality",
    "forget_truth_ratio",
    "mia_min_k_plus_plus",
    "forget_Q_A_Prob/relearned",
    "loss_gap/quantised_4",
)


def verified(folder: Path, ids: list[str]) -> tuple[Ledger, Batch]:
    """A ledger with one batch that is ready for its evidence."""
    ledger = Ledger(folder / "ledger.db")
    ledger.submit(ids, "GDPR art. 17")
    batch = ledger.drain()
    assert batch is not None
    for status in ("weighed", "unlearned", "verified"):
        batch = ledger.advance(batch, status)
    return ledger, batch


def example(ledger: Ledger, ids: list[str], **changes: Any) -> Evidence:
    """Of these records, all but the last consistent with retraining."""
    draw = random.Random(0)
    verdicts = ["CONSISTENT_WITH_RETRAIN"] * (len(ids) - 1) + ["OVER_UNLEARNED"]
    records = [
        model.Record(
            ledger.record_hash(one),
            ledger.salt.salted("content", one),
            "requested",
            verdict,
            loss_before=0.02,
            loss_after=draw.gauss(3.1, 0.2),
            loss_reference=3.0,
            z=draw.gauss(0, 0.6),
            extraction_before=0.93,
            extraction_after=0.04,
        )
        for one, verdict in zip(ids, verdicts, strict=True)
    ]
    tests = [
        model.Test(name, draw.random(), 0.1, 0.9, 0.5, len(ids), 0.6 * 0.02**i, 1.0) for i, name in enumerate(NAMES)
    ]
    steps = [model.Step(10 * i, 0.02 + 3 * i / 20, 0.02 + 0.1 * (i / 20) ** 2) for i in range(21)]
    ratios = [[draw.betavariate(*shape) for _ in range(40)] for shape in ((1, 6), (5, 5), (5, 4))]
    evidence = Evidence(
        title="People who asked to be forgotten",
        time="2026-08-01T12:00:00.000+00:00",
        verdict="OVER_UNLEARNED",
        tier="E2",
        duplicates_rule="the same content hash, or an attribution above 0.9 of the record's own",
        tolerance=2.0,
        retain_drop=0.1,
        data_before=HASH,
        data_after=HASH[::-1],
        hashes=[model.Hashes("model", HASH, HASH[::-1]), model.Hashes("tokenizer", HASH, HASH)],
        method=model.Method(
            "npo, guard",
            {"beta": 0.1, "learning_rate": 1e-5, "weights": {"temperature": 1.0, "score": None}},
            7,
            "0.1.0 " + HASH,
            "2 CPU cores",
            {"torch": "2.13.0"},
        ),
        references=[model.Reference(HASH, seed, "the same configuration without the records") for seed in range(3)],
        change=model.WeightChange({f"blocks.{i}.attention.projection": 0.5**i for i in range(4)}, 12, 8),
        tests=tests,
        records=records,
        collateral=[
            model.Collateral(ledger.record_hash(f"person-{90 + i}"), 0.3 / (i + 1), 0.02, 0.4 / (i + 1))
            for i in range(5)
        ],
        history=steps,
        truth_ratios=model.TruthRatios(*ratios[:1], ratios[2], ratios[1]),
        publication=model.Publication("people", "3", "champion"),
        caveats=("Only three reference models were trained.",),
    )
    return replace(evidence, **changes)


def uncompared(ledger: Ledger, ids: list[str], tier: str) -> Evidence:
    """Of the same records where no model was trained without them: E3 compares with held-out rows, E4 with nothing."""
    full = example(ledger, ids)
    alone = [one for one in full.tests if one.name.startswith(("forget_truth_ratio", "forget_Q_A_Prob"))]
    tests = [replace(one, null=None, p=None, p_holm=None) for one in alone]
    if tier == "E3":
        tests.append(model.Test("mia_loss", 0.61, 0.52, 0.7, 0.5, len(ids), 0.02, 0.02, before=1.0))
    return replace(
        full,
        tier=tier,
        verdict="UNTESTABLE",
        records=[replace(one, verdict="UNTESTABLE", loss_reference=None, z=None) for one in full.records],
        tests=tests,
        references=[],
        truth_ratios=replace(full.truth_ratios, retrained=()),
        publication=None,
    )
