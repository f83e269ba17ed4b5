"""What a run of unlearn did, as the plain keys of ``summary.json``, and as the table that closes it on screen."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from curation.unlearning.evidence_model import TIERS, VERDICTS
from flows import versions
from flows.runner import Finished
from flows.summary import mlflow_command
from flows.unlearn_schema import UnlearnConfig

DONE = ("published", "no_action", "dry_run", "awaiting_approval")
"""Statuses of a run that did what was asked; after the others the records are still in the model in use."""
MEASURED = ("forget_exact_before", "forget_exact_after", "retain_exact_before", "retain_exact_after", "verdict")
SAID = {
    "no_action": "nothing to remove",
    "dry_run": "dry run, nothing was changed",
    "awaiting_approval": "nothing is changed before somebody approves",
    "rejected": "the requests were refused",
    "expired": "nobody approved in time, nothing was changed",
    "verify_failed": "the checks failed, nothing was published",
    "published": "the records are unlearned, the model is published",
}
_KEYS = {"evidence.html": "evidence_page"}
UNCOMPARED = (
    "no model was trained without the records (verify.seeds: 0), so nothing can be shown and nothing was published; for that, set "
    "verify.seeds to at least 2 and run again (into another output_dir, if you name one): what is done is reused"
)
RETRAINED = "the unlearned model failed the checks; one trained again without the records is published"


def summarise(
    config: UnlearnConfig,
    stages: Mapping[str, Finished],
    *,
    status: str,
    folder: Path,
    results: Sequence[str],
    checked: Mapping[str, Any],
    tier: str | None,
    approval: Mapping[str, Any] | None,
    batch: int | None,
    run_ids: Mapping[str, str | None],
    uri: str,
    total_seconds: float,
    digests: Mapping[str, str],
) -> dict[str, Any]:
    """The content of ``summary.json``; what was not reached is None.

    Args:
        config: the configuration.
        stages: the finished stages by name.
        status: how the run ended.
        folder: of the results.
        results: names of the files in it.
        checked: values of the stage verify, of the model that was published or refused.
        tier: how strong the evidence is.
        approval: the question and its answer; None where none is asked for.
        batch: number of the ledger's batch.
        run_ids: MLflow's parent run and Prefect's flow run, under the keys they get.
        uri: where MLflow keeps it.
        total_seconds: wall time of the whole command so far.
        digests: what the results are of.
    """
    loaded = stages["load"].values
    resolved, weighed, unlearned = (
        stages[name].values if name in stages else {} for name in ("resolve", "weigh", "unlearn")
    )
    seconds = {name: stage.seconds for name, stage in stages.items()}
    files = {_KEYS.get(name, name.rpartition(".")[0]): str(folder / name) for name in results}
    return {
        "status": status,
        "name": config.name,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "reason": config.request.reason,
        "batch": batch,
        "n_examples": loaded["n_train"],
        "n_records": resolved.get("records", 0),
        "n_requested": resolved.get("requested", 0),
        "n_references": sum(name.startswith("retrain-") for name in stages),
        "near_duplicates": resolved.get("searched", []),
        "effective_size": weighed.get("effective_size"),
        "opposition": weighed.get("opposition"),
        "warnings": [*weighed.get("warnings", []), *unlearned.get("warnings", [])],
        "newton": unlearned.get("newton"),
        **{key: checked.get(key) for key in MEASURED},
        "passed": checked.get("passed"),
        "verdict_unlearned": stages["verify"].values["verdict"] if "verify" in stages else None,
        "failures": stages["verify"].values["failures"] if "verify" in stages else [],
        "tier": tier,
        "purge": None,
        "approval": approval,
        "evidence": files.get("evidence"),
        **dict.fromkeys(("registered", "alias", "alias_before", "alias_after")),  # known last of all
        "seconds": {**seconds, "total": round(total_seconds, 3)},
        "reused": [name for name, stage in stages.items() if stage.reused],
        "seeds": {"train": config.train.seed, "index": config.index.seed, "unlearn": config.unlearn.seed},
        "model": loaded["model"],
        "digests": {**digests, **{name: stage.digest for name, stage in stages.items()}},
        "versions": versions.recorded(),
        **run_ids,
        "mlflow_tracking_uri": uri,
        "mlflow_command": mlflow_command(uri),
        "files": files,
    }


def _answering(approval: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The commands by which a question is answered, or who has answered it."""
    if approval["decision"] is not None:
        reason = f": {approval['reason']}" if approval["reason"] else ""
        return [("Answer", f"{approval['decision']} by {approval['by']}, {approval['decided']}{reason}")]
    follows = [("Once approved", " ".join(approval["follows"]))]
    return [
        *follows,
        ("To approve", approval["command"]),
        ("To reject", f"{approval['command']} --reject --reason WHY"),
    ]


def closing_table(summary: Mapping[str, Any], console: Console) -> None:
    """Print what became of the records and where everything is; long lines are left whole, so that paths can be copied."""
    console.print()
    before = "" if "checked" not in summary else f"; nothing has changed since {summary['finished']}"
    said = RETRAINED if summary["tier"] == "E0" else SAID[summary["status"]]
    if summary["status"] == "verify_failed" and not summary["n_references"]:
        said = UNCOMPARED
    console.print(
        f"[bold]{said[0].upper()}{said[1:]}[/] ({summary['status']}{before}).", highlight=False, soft_wrap=True
    )
    lines = [
        (
            "Records",
            f"{summary['n_records']:,} of {summary['n_examples']:,} training rows, {summary['n_requested']:,} requested",
        )
    ]
    if summary["verdict"] is not None:
        for title, kind in (("Records answered exactly", "forget"), ("Others answered exactly", "retain")):
            shares = (100 * summary[f"{kind}_exact_{when}"] for when in ("before", "after"))
            lines.append((title, "{:.1f} % before, {:.1f} % after".format(*shares)))
        lines.append(("Verdict", f"{summary['verdict']}: {VERDICTS[summary['verdict']]}"))
    lines += [("Failed check", failure) for failure in summary["failures"]]
    if summary["tier"] is not None:
        lines.append(("Tier", f"{summary['tier']}, {TIERS[summary['tier']]}"))
    if summary["purge"] is not None:
        lines.append(("Purge", _purged(summary["purge"])))
    if summary["approval"] is not None:
        lines += _answering(summary["approval"])
    if summary["registered"] is not None:
        name, version = summary["registered"].values()
        moved = f", alias {summary['alias']} moved from {summary['alias_before'] or 'none'}" if summary["alias"] else ""
        lines.append(("Registered", f"{name} version {version}{moved}"))
    lines += [(name.capitalize().replace("_", " "), path) for name, path in summary["files"].items()]
    lines.append(("MLflow page", summary["mlflow_command"]))
    for title, text in lines:
        console.print(f"[bold]{title:<26}[/]{escape(text)}", highlight=False, soft_wrap=True)


def _purged(done: Mapping[str, Any]) -> str:
    """What a purge came to."""
    left = (
        f"{len(done['left'])} still name the records: {', '.join(done['left'])}" if done["left"] else "none names them"
    )
    return f"{done['files_searched']:,} files searched, {left}"
