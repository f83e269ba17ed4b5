"""The evidence of a run of unlearn, from what its stages have left."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from curation.unlearning import evidence, signing
from curation.unlearning.evidence_model import (
    VERDICTS,
    Collateral,
    Evidence,
    Hashes,
    Method,
    Record,
    Reference,
    Step,
    Test,
    TruthRatios,
    WeightChange,
    worst,
)
from curation.unlearning.requests import Batch
from flows import versions
from flows.files import digest_file
from flows.modelling import checkpoint_of
from flows.runner import Finished
from flows.unlearn_requests import Requests

if TYPE_CHECKING:
    from flows.unlearning import UnlearnRun

NOT_PURGED = "The records were removed from the model only: neither from the data nor from an index of it."


def evidence_of(
    run: UnlearnRun,
    requests: Requests,
    model: Finished,
    published: Finished,
    references: list[Finished],
    records: Finished,
    checked: Finished,
    tier: str,
) -> Evidence:
    """What the evidence says.

    Args:
        run: whose evidence it is.
        requests: those it answers, verified.
        model: as it was.
        published: as it will be.
        references: models it was compared with.
        records: of the stage resolve.
        checked: of the stage verify, about ``published``.
        tier: how strong it is.
    """
    config, ledger, batch = run.config, requests.ledger, _open(requests)
    found = json.loads(checked.files["assessment"].read_text(encoding="utf-8"))
    # An exact retraining has no course of its own.
    course = json.loads(published.files["course"].read_text(encoding="utf-8")) if "course" in published.files else {}
    entries = _records(requests, batch, records, checked)
    unlearned = "course" in published.files
    weights, options = config.weights.model_dump(mode="json"), config.unlearn.model_dump(mode="json")
    return Evidence(
        title=config.name,
        time=[event.time for event in ledger.events(batch.status) if event.batch == batch.number][-1],
        verdict=worst([entry.verdict for entry in entries]),
        tier=tier,
        duplicates_rule="; ".join(records.values["searched"]) or "not looked for",
        tolerance=config.verify.tolerance,
        data_before=run.loaded["digest"],
        data_after=records.values["digest"],
        hashes=[Hashes("model", digest_file(Path(checkpoint_of(model))), digest_file(Path(checkpoint_of(published))))],
        method=Method(
            name=f"{config.unlearn.objective}, {config.weights.method}" if unlearned else "retrain",
            options={"weights": weights, "unlearn": options} if unlearned else config.train.model_dump(mode="json"),
            seed=config.unlearn.seed if unlearned else config.train.seed + 1,
            code=run.code,
            hardware=f"{platform.machine()}, {platform.system()}",
            versions=versions.recorded(),
        ),
        references=[
            Reference(digest_file(Path(checkpoint_of(one))), seed, one.digest) for one, seed in _seeds(run, references)
        ],
        change=WeightChange(**found["changes"]),
        tests=[Test(**test) for test in found["tests"]],
        records=entries,
        collateral=[Collateral(name, None, before, after) for _, name, before, after in found["collateral"]],
        history=[Step(int(at["step"]), at["forget_loss"], at["retain_loss"]) for at in course.get("curve", [])],
        truth_ratios=TruthRatios(**found["truth_ratios"]),
        caveats=[*[NOT_PURGED] * (not config.purge), *run.stages["weigh"].values["warnings"]],
    )


def write_evidence(run: UnlearnRun, requests: Requests, content: Evidence) -> Path:
    """Write ``evidence.json`` and its seal into the run's folder and note it in the ledger; called before publishing."""
    key = signing.private_key(run.config.evidence.key) if run.config.evidence.key is not None else None
    return evidence.write(run.folder.path, content, requests.ledger, _open(requests), key)


def _open(requests: Requests) -> Batch:
    if requests.batch is None:
        raise RuntimeError("evidence is of a batch of the ledger; nothing waited")
    return requests.batch


def _records(requests: Requests, batch: Batch, records: Finished, checked: Finished) -> list[Record]:
    """Every record that goes, worst first, by salted hashes."""
    resolved = pl.read_parquet(records.files["records"]).select("example_id", "why", "content")
    rows: list[dict[str, Any]] = (
        pl.read_parquet(checked.files["verdicts"])
        .join(resolved, on="example_id", how="left", maintain_order="left")
        .to_dicts()
    )
    ledger, figures = (
        requests.ledger,
        ("loss_before", "loss_after", "loss_reference", "z", "extraction_before", "extraction_after"),
    )
    found = [
        Record(
            ledger.record_hash(row["example_id"], batch.dataset),
            ledger.salted("content", batch.dataset, row["content"]),
            row["why"],
            row["verdict"],
            **{name: row[name] for name in figures},
        )
        for row in rows
    ]
    order = {name: place for place, name in enumerate(VERDICTS)}
    return sorted(found, key=lambda one: order[one.verdict])


def _seeds(run: UnlearnRun, references: list[Finished]) -> list[tuple[Finished, int]]:
    """The references with the seeds they were trained with."""
    titles = {stage.digest: title for title, stage in run.stages.items() if title.startswith("retrain-")}
    return [(one, int(titles[one.digest].removeprefix("retrain-"))) for one in references]
