"""The evidence of a run of unlearn, from what its stages have left, with or without a ledger."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from curation.errors import DataError, LedgerError
from curation.unlearning import evidence, evidence_page, signing
from curation.unlearning.evidence_model import (
    NOT_PUBLISHED,
    TO_BE_PUBLISHED,
    VERDICTS,
    Collateral,
    Evidence,
    Hashes,
    Method,
    Publication,
    Record,
    Reference,
    Rejected,
    Step,
    Test,
    TruthRatios,
    WeightChange,
    worst,
)
from curation.unlearning.salt import Salt
from flows import approval, versions
from flows.errors import ConfigError
from flows.files import digest_file
from flows.folder import MANIFEST
from flows.modelling import checkpoint_of
from flows.runner import Finished
from flows.unlearn_schema import RetainSection, UnlearnConfig

if TYPE_CHECKING:
    from flows.unlearn_ending import EndingRun
    from flows.unlearn_requests import Requests
    from flows.unlearning import UnlearnRun

SALT = "evidence.salt"
"""In the workspace: the secret behind the hashes of records where there is no ledger, which has its own."""
FILES = (evidence.NAME, evidence.seal_path(Path(evidence.NAME)).name, evidence_page.NAME)
TOKEN_IDS = "token ids (digest by this tool)"
"""What stands for the tokenizer among the hashes: that of what decides its ids, and of no file."""
UNLIKE = "Exact by how the model was made, without the records; the comparison with other models made so did not pass all the same."
FAILED = "A check that failed:"
CHOSEN = (
    "Which of the rows that stay were protected and measured was chosen in the configuration (retain): of the others nothing is "
    "said here."
)
NOT_COMPARED = (
    "No model was trained without the records (verify.seeds: 0): nothing was compared with one, so nothing can be shown of any "
    "record, and what stays was compared with the model before."
)
NOT_PURGED = "Nothing was removed from the data or from an index of it: this is about the model only."


@dataclass(frozen=True)
class Checked:
    """What the evidence is of: a model that was compared with others.

    Attributes:
        before: the model as it was.
        after: the one compared.
        references: those it was compared with.
        records: of the stage resolve.
        verified: of the stage verify, about ``after``.
        tier: how strong that is.
        accepted: whether ``after`` may be published.
    """

    before: Finished
    after: Finished
    references: list[Finished]
    records: Finished
    verified: Finished
    tier: str
    accepted: bool


def check_secrets(config: UnlearnConfig) -> None:
    """See to it, before anything is computed, that the key and the salt can be read.

    Raises:
        ConfigError: one cannot.
    """
    problems = []
    try:
        if config.evidence.key is not None:
            signing.private_key(config.evidence.key)
    except DataError as error:
        problems += [f"evidence.key: {problem}" for problem in error.problems]
    try:
        if not config.request.ledger:
            Salt.at(config.workspace / SALT)
    except LedgerError as error:
        problems.append(f"workspace: {error}")
    if problems:
        raise ConfigError(problems)


def salt_of(run: UnlearnRun) -> Salt:
    """The secret by which the run's records are hashed: the ledger's, else the workspace's."""
    return run.requests.ledger.salt if run.requests is not None else Salt.at(run.config.workspace / SALT)


def evidence_of(run: UnlearnRun, checked: Checked, publication: Publication | None) -> Evidence:
    """What the evidence of a run says, from what its stages have left, and where the model is to go."""
    config, records = run.config, checked.records
    rows = (
        pl.read_parquet(checked.verified.files["verdicts"])
        .join(pl.read_parquet(records.files["records"]).select("example_id", "why", "content"), on="example_id")
        .to_dicts()
    )
    entries = _records(rows, salt_of(run), config.request.dataset)
    found = _read(checked.verified.files["assessment"])
    return Evidence(
        title=config.name,
        time=_noted(checked.verified),
        verdict=worst([entry.verdict for entry in entries]),
        tier=checked.tier,
        duplicates_rule="; ".join(records.values["searched"]) or "not looked for",
        tolerance=config.verify.tolerance,
        retain_drop=config.verify.retain_drop,
        data_before=run.loaded["digest"],
        data_after=records.values["digest"],
        hashes=_hashes(run, checked),
        method=_method(run, checked.after),
        references=[
            Reference(_sha256(one), seed, _trained(run)) for one, seed in _seeds(run.stages, checked.references)
        ],
        change=WeightChange(**found["changes"]),
        tests=[Test(**test) for test in found["tests"]],
        records=entries,
        removed_earlier=_removed_earlier(run.requests, entries),
        collateral=[
            Collateral(salt_of(run).record_hash(name, config.request.dataset), None, before, after)
            for name, before, after in pl.read_parquet(checked.verified.files["collateral"]).iter_rows()
        ],
        history=_history(run.stages["unlearn"]),
        truth_ratios=_truth_ratios(run, checked, found),
        caveats=[
            *[NOT_COMPARED] * (not checked.references),
            *[CHOSEN] * (config.retain != RetainSection()),
            *[NOT_PURGED] * (not (config.purge and checked.accepted)),
            TO_BE_PUBLISHED if checked.accepted else NOT_PUBLISHED,
            *[UNLIKE] * (checked.accepted and not checked.verified.values["passed"]),
            *(f"{FAILED} {failure}" for failure in checked.verified.values["failures"]),
            *(line for name in ("weigh", "unlearn") for line in run.stages[name].values["warnings"]),
        ],
        publication=publication,
        rejected=_rejected(run, checked),
        approval=approval.evidence_of(run.folder.path) if config.approval.required else None,
    )


def write_evidence(run: EndingRun, content: Evidence, ids: Sequence[str] = ()) -> Path:
    """Write ``evidence.json``, its seal and its page into the run's folder and note it in the ledger, if there is one.

    Called before the batch ends, while its ids are there to see that none of them is in the file.

    Args:
        run: whose evidence it is.
        content: what it says.
        ids: of further records that it may not name.
    """
    ledger, batch = (run.requests.ledger, run.requests.batch) if run.requests is not None else (None, None)
    path = evidence.write(run.folder.path, content, ledger, batch, _key(run.config), list(ids))
    evidence_page.write(path)
    return path


def named(checked: Checked) -> list[str]:
    """The ids of the records that an evidence is about."""
    return [str(one) for one in pl.read_parquet(checked.records.files["records"])["example_id"]]


def problems_of(run: EndingRun, path: Path, model: Path) -> list[str]:
    """What speaks against publishing a model file: its evidence is not in order, or about another model."""
    key = _key(run.config)
    ledger = run.requests.ledger if run.requests is not None else None
    problems = evidence.verify(path, ledger, key.public_key() if key is not None else None)
    said = evidence.read(path)
    if run.publication is None or said["publication"] != asdict(run.publication):
        problems.append("the evidence names another place, or is of a model that failed the checks")
    if digest_file(model) not in [one["after"] for one in said["hashes"]]:
        problems.append(f"the evidence is of another model than {model}")
    return problems


def _key(config: UnlearnConfig) -> Ed25519PrivateKey | None:
    return signing.private_key(config.evidence.key) if config.evidence.key is not None else None


def _records(rows: list[dict[str, Any]], salt: Salt, dataset: str) -> list[Record]:
    """Every record that goes, worst first, by salted hashes."""
    figures = ("loss_before", "loss_after", "loss_reference", "z", "extraction_before", "extraction_after")
    found = [
        Record(
            salt.record_hash(row["example_id"], dataset),
            salt.salted("content", dataset, row["content"]),
            row["why"],
            row["verdict"],
            **{name: row[name] for name in figures},
        )
        for row in rows
    ]
    order = {name: place for place, name in enumerate(VERDICTS)}
    return sorted(found, key=lambda one: order[one.verdict])


def _removed_earlier(requests: Requests | None, records: list[Record]) -> list[str]:
    """Salted hashes of what the requests name and the data has no more: those that had never been there were refused."""
    if requests is None or requests.batch is None:
        return []
    asked = {one for request in requests.batch.requests for one in requests.ledger.hashes(request.number)}
    return sorted(asked - {record.record for record in records})


def _method(run: UnlearnRun, model: Finished) -> Method:
    """How the model was made: unlearned, or trained again without the records."""
    config, unlearned = run.config, model is run.stages["unlearn"]
    weights, options = config.weights.model_dump(mode="json"), config.unlearn.model_dump(mode="json")
    return Method(
        name=_name(config) if unlearned else "retrain",
        options={"weights": weights, "unlearn": options} if unlearned else config.train.model_dump(mode="json"),
        seed=config.unlearn.seed if unlearned else config.train.seed + 1,
        code=run.code,
        hardware=f"{platform.machine()}, {platform.system()}",
        versions=versions.recorded(),
    )


def _hashes(run: UnlearnRun, checked: Checked) -> list[Hashes]:
    """Of the model, and of what makes its token ids, which unlearning does not touch."""
    found, tokenizer = [Hashes("model", _sha256(checked.before), _sha256(checked.after))], run.loaded["tokenizer"]
    return found if tokenizer is None else [*found, Hashes(TOKEN_IDS, tokenizer, tokenizer)]


def _trained(run: UnlearnRun) -> str:
    """How the models to compare with were made, seeds aside."""
    config = run.config
    train = {name: value for name, value in config.train.model_dump(mode="json").items() if name != "seed"}
    parts = (f"{name} {value}" for name, value in {**config.model.init_args, **train}.items() if value is not None)
    return f"{run.loaded['model']['class_path']} trained anew, as the configuration begins, on the data after: {', '.join(parts)}"


def _rejected(run: UnlearnRun, checked: Checked) -> Rejected | None:
    """The unlearning that failed, where another model was taken for it."""
    if checked.after is run.stages["unlearn"]:
        return None
    values = run.stages["verify"].values
    return Rejected(_name(run.config), values["verdict"], values["failures"])


def _truth_ratios(run: UnlearnRun, checked: Checked, found: Mapping[str, Any]) -> TruthRatios:
    if checked.after is run.stages["unlearn"]:
        return TruthRatios(**found["truth_ratios"])
    first = _read(run.stages["verify"].files["assessment"])
    return TruthRatios(**found["truth_ratios"], rejected=first["truth_ratios"]["after"])


def _history(unlearned: Finished) -> list[Step]:
    """The course of the unlearning, from the model as it was."""
    curve = _read(unlearned.files["course"])["curve"]
    return [Step(int(at["step"]), at["forget_loss"], at["retain_loss"]) for at in curve]


def _name(config: UnlearnConfig) -> str:
    return f"{config.unlearn.objective}, {config.weights.method}"


def _seeds(stages: Mapping[str, Finished], references: list[Finished]) -> list[tuple[Finished, int]]:
    """The references with the seeds they were trained with."""
    titles = {stage.digest: title for title, stage in stages.items() if title.startswith("retrain-")}
    return [(one, int(titles[one.digest].removeprefix("retrain-"))) for one in references]


def _sha256(model: Finished) -> str:
    return digest_file(Path(checkpoint_of(model)))


def _noted(stage: Finished) -> str:
    """When a stage was finished, the same however often it is taken up again."""
    return datetime.fromtimestamp((stage.folder / MANIFEST).stat().st_mtime, UTC).isoformat(timespec="milliseconds")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
