"""Stage verify: whether a model can be told from models that never saw the records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from curation.examples import write_parquet_atomic
from curation.unlearning.changes import weight_changes
from curation.unlearning.verification.assessment import Assessment, AssessmentOptions, assess
from curation.unlearning.verification.records import records_of
from flows.files import write_json
from flows.stages.common import Arguments, Output, Progress, open_data, trained_model
from flows.stages.resolving import staying


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Compare the model in ``checkpoint_after`` with those in ``references``, and with itself before (``checkpoint``).

    Returns:
        ``values``: ``verdict`` (of the worst record), ``passed``, ``failures`` (sentences), ``tier``, ``forget_exact_before``,
        ``forget_exact_after``, ``retain_exact_before``, ``retain_exact_after``; files ``assessment`` (JSON: all that was
        measured, and ``changes`` of the weights), ``verdicts`` (a row a record, losses in nats a token) and ``collateral`` (the
        rows that stay and suffered most, likewise).
    """
    data, options = open_data(arguments), arguments["verify"]
    going = pl.read_parquet(arguments["records"])
    ids, stays = going["example_id"], staying(data, going["position"].to_numpy(), arguments["retain"])
    sizes = {name: options[name] for name in ("retain_rows", "batch_size")}
    records = records_of(data, ids.to_list(), stays=stays, **sizes)
    paths = [arguments["checkpoint"], arguments["checkpoint_after"], *arguments["references"]]
    before, after, *retrained = (trained_model(arguments, data, path) for path in paths)
    progress("models to compare with", 0, len(retrained))
    chosen = AssessmentOptions(
        tolerance=options["tolerance"],
        quantise=tuple(options["quantise"]),
        relearn_steps=options["relearn_steps"],
        relearn_lr=options["relearn_lr"],
        retain_drop=options["retain_drop"],
        seed=arguments["unlearn"]["seed"],
    )
    found = assess(before, after, retrained, records, chosen)
    changes = weight_changes(before.state_dict(), after.state_dict())
    content = {"changes": {"norms": changes.norms, "tensors": changes.tensors, "changed": changes.changed}}
    write_json(folder / "assessment.json", found.to_json() | content | {"truth_ratios": _truth_ratios(found)})
    write_parquet_atomic(_verdicts(found, ids), folder / "verdicts.parquet")
    write_parquet_atomic(_collateral(found, ids.dtype), folder / "collateral.parquet")
    first, last = found.panels["before"], found.panels["after"]
    values = {
        "verdict": found.verdict,
        "passed": found.passed,
        "failures": found.failures,
        "tier": found.tier,
        "forget_exact_before": first.exact_forget,
        "forget_exact_after": last.exact_forget,
        "retain_exact_before": first.exact_retain,
        "retain_exact_after": last.exact_retain,
    }
    files = {"assessment": "assessment.json"} | {name: f"{name}.parquet" for name in ("verdicts", "collateral")}
    return Output(values, files)


def _verdicts(found: Assessment, ids: pl.Series) -> pl.DataFrame:
    """What was found of each record.

    ``z`` is the gap of the losses' roots to the references, in standard deviations between seeds; negative = remembered. It
    and ``loss_reference`` are null where there are none.
    """
    before, after = found.panels["before"], found.panels["after"]
    references = [panel.losses_forget for name, panel in found.panels.items() if name.startswith("retrained")]
    nothing = [None] * len(ids)
    return pl.DataFrame(
        {
            "example_id": ids,
            "verdict": list(found.verdicts.verdicts),
            "loss_before": before.losses_forget,
            "loss_after": after.losses_forget,
            "loss_reference": np.mean(references, axis=0) if references else nothing,
            "z": found.verdicts.gaps.get("direct", nothing),
            "extraction_before": before.extraction,
            "extraction_after": after.extraction,
        },
        schema_overrides={"loss_reference": pl.Float64, "z": pl.Float64},
    )


def _collateral(found: Assessment, kind: pl.DataType) -> pl.DataFrame:
    """The rows that stay and suffered most, worst first, their ids of this type."""
    rows = [(name, before, after) for _, name, before, after in found.collateral if after > before]
    schema = {"example_id": kind, "loss_before": pl.Float64(), "loss_after": pl.Float64()}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _truth_ratios(found: Assessment) -> dict[str, list[float]]:
    """Of each record under each kind of model, those that have one."""
    kinds: dict[str, list[float]] = {"before": [], "after": [], "retrained": []}
    for name, panel in found.panels.items():
        ratios = panel.truth_ratios if panel.truth_ratios is not None else np.empty(0)
        kinds[name.partition("_")[0]] += ratios[np.isfinite(ratios)].tolist()
    return kinds
