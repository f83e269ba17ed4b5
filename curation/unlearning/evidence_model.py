"""What an evidence file says of one unlearning run, as plain data.

It is evidence: what was measured and how, so that others can judge it. Whether that settles a request is not for it to say.
A record, one that stays too, stands in it by salted hashes only: others read it, and a later request may be about that one.
None = not measured. Losses are in nats, mean over tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VERSION = 1

VERDICTS = {
    "RESIDUAL": "the model still treats it as a record it was trained on",
    "OVER_UNLEARNED": "the model treats it worse than models that never saw it: a trace of its own",
    "UNTESTABLE": "too little was measured to say",
    "NO_BASELINE": "nothing of it could be seen in the model before, so nothing can be seen to be gone",
    "CONSISTENT_WITH_RETRAIN": "shown to lie within the tolerance of models that never saw it",
}
"""What is said of a record, worst first; the worst record decides on the whole."""

TIERS = {
    "E0": "exact: the model was trained again without the records",
    "E1": "compared with many models that never saw the records (20 or more)",
    "E2": "compared with few models that never saw the records",
    "E3": "compared with a stand-in for such a model only: predicted by attribution, or held-out records",
    "E4": "no comparison: only what the model shows of the records when asked",
}
"""How strong the evidence is, strongest first."""

UNCOMPARED = ("E3", "E4")
"""Those of evidence without a model that never saw the records, by which every record is UNTESTABLE."""

LIMITS = (
    "What was not measured is not shown: that these tests find no trace of a record does not mean that no other would.",
    "Every comparison is with models of the same kind and within the tolerance declared beforehand, not with certainty.",
    "Copies of the records outside the files named here, such as backups and models made earlier, are not covered.",
    "Whether this meets a legal duty is for people to judge.",
)
"""What no evidence file shows; the caveats of the run come beside them."""

UNCHAINED = "The run had no ledger: that this file is as it was written shows by its digest and signature only."
"""One more of them, where that is so."""

TO_BE_PUBLISHED = (
    "This was written before the model was put to use. That it then was is said by the ledger's event of its publication, which "
    "holds the digest of this file, and without a ledger by the summary of the run."
)
"""What is said of a run whose evidence is of a model that passed."""

NOT_PUBLISHED = "The checks failed and nothing was published: the model in use is the one from before."
"""What is said of a run whose evidence is of a model that was refused."""


@dataclass(frozen=True)
class Hashes:
    """A file or folder before and after (sha256, hex).

    Attributes:
        name: "model", "adapter", a file's name, ...
        before: its hash before the run; None: there was none.
        after: and after.
    """

    name: str
    before: str | None
    after: str


@dataclass(frozen=True)
class Method:
    """How the records were unlearned.

    Attributes:
        name: objective and weights ("npo, guard"), or "retrain".
        options: every hyper-parameter.
        seed: of the run.
        code: version of this software, with the commit or the digest of its sources.
        hardware: in words.
        versions: package -> version.
    """

    name: str
    options: Mapping[str, Any]
    seed: int
    code: str
    hardware: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Reference:
    """A model that never saw the records.

    Attributes:
        hash: sha256 of its weights.
        seed: it was trained with.
        trained: how, in words.
    """

    hash: str
    seed: int
    trained: str


@dataclass(frozen=True)
class WeightChange:
    """That the weights changed.

    Attributes:
        norms: module -> Euclidean norm of the change.
        tensors: how many tensors the model has.
        changed: how many of them changed.
    """

    norms: Mapping[str, float]
    tensors: int
    changed: int


@dataclass(frozen=True)
class Test:
    """One measure on a set of records.

    Attributes:
        name: as open-unlearning calls it (`forget_truth_ratio`), after a slash the probe ("relearned", "4-bit").
        point: the estimate.
        low: lower end of its interval.
        high: upper end.
        null: what the measure is for models that never saw the records, or under no effect.
        n: records, or pairs, that it was taken on.
        p: p-value against the null.
        p_holm: the same after Holm's correction for all tests of this file.
        before: the same figure of the model as it was.
    """

    name: str
    point: float | None
    low: float | None
    high: float | None
    null: float | None
    n: int
    p: float | None = None
    p_holm: float | None = None
    before: float | None = None


@dataclass(frozen=True)
class Record:
    """One removed record.

    Attributes:
        record: salted hash of its id.
        content: salted hash of its content.
        found: "requested", or by which rule it was found to be a near-duplicate.
        verdict: one of VERDICTS.
        loss_before: under the model as it was.
        loss_after: under the unlearned model.
        loss_reference: mean over the models that never saw it.
        z: gap of the roots of the losses to the references', in standard deviations between seeds; negative = remembered.
        extraction_before: extraction strength in [0, 1] before.
        extraction_after: and after.
    """

    record: str
    content: str
    found: str
    verdict: str
    loss_before: float | None = None
    loss_after: float | None = None
    loss_reference: float | None = None
    z: float | None = None
    extraction_before: float | None = None
    extraction_after: float | None = None


@dataclass(frozen=True)
class Collateral:
    """A record that stays and suffered.

    Attributes:
        record: salted hash of its id.
        alignment: gradient product with the removed records; positive = their removal hurts it.
        loss_before: before the run.
        loss_after: after it.
    """

    record: str
    alignment: float | None
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class Step:
    """One point of the unlearning run.

    Attributes:
        step: optimizer steps so far.
        forget_loss: mean loss of the records to remove.
        retain_loss: mean loss of records that stay.
    """

    step: int
    forget_loss: float | None
    retain_loss: float | None


@dataclass(frozen=True)
class TruthRatios:
    """Truth ratio of each removed record (1 = wrong answers as likely as the right one; 0 = the right one is known).

    Attributes:
        before: under the model as it was.
        after: under the model that this evidence is of.
        retrained: under the models that never saw them, all seeds.
        rejected: under the unlearned model, where it failed the checks and another was taken.
    """

    before: Sequence[float] = ()
    after: Sequence[float] = ()
    retrained: Sequence[float] = ()
    rejected: Sequence[float] = ()


@dataclass(frozen=True)
class Rejected:
    """An unlearning whose model failed the checks, so that one trained without the records was taken in its place.

    Attributes:
        name: objective and weights.
        verdict: of its worst record.
        failures: the checks that it failed, a sentence each.
    """

    name: str
    verdict: str
    failures: Sequence[str] = ()


@dataclass(frozen=True)
class Publication:
    """Where a model that may be published is to go. Noted before it goes there: the ledger's event `published` comes after.

    Attributes:
        name: in MLflow's registry; None: nowhere but into the run's folder.
        version: of that name.
        alias: that is to move to it; None: none is.
    """

    name: str | None = None
    version: str | None = None
    alias: str | None = None


@dataclass(frozen=True)
class Evidence:
    """One unlearning run.

    Attributes:
        title: name of the run.
        time: when it was verified, ISO 8601, UTC; noted then, so that a repeated write gives the same bytes.
        verdict: that of the worst record.
        tier: one of TIERS.
        duplicates_rule: how near-duplicates of the requested records were looked for.
        tolerance: largest gap to the references that counts as none, in the unit of `Record.z`; declared before.
        retain_drop: how far the share of the rows that stay which are answered exactly, and the mean probability of their
            answers, could lie below the references', or the former model's where there are none; declared before.
        data_before: digest of the data's manifest before.
        data_after: and after the records were removed from it.
        hashes: model, tokenizer, adapter; before and after.
        method: how.
        references: the models compared with; none of the tiers UNCOMPARED.
        change: of the weights.
        tests: every one that was made.
        records: every one that was removed, worst first.
        removed_earlier: salted hashes of requested records that an earlier request had removed.
        collateral: those that stay and suffered most, worst first.
        history: the unlearning, step by step; of the rejected one where there is one.
        truth_ratios: their distributions.
        approval: who approved what and when, as noted; None = none was asked for.
        caveats: what is particular to this run, in sentences.
        purge: what was removed beside the model, and what a search through all files then found; None = none was asked for.
        publication: where the model that this is about is to go; None: nowhere, it failed the checks.
        rejected: the unlearning that failed before another model was taken; None = none did.
    """

    title: str
    time: str
    verdict: str
    tier: str
    duplicates_rule: str
    tolerance: float
    data_before: str
    data_after: str
    hashes: Sequence[Hashes]
    method: Method
    references: Sequence[Reference]
    change: WeightChange
    tests: Sequence[Test]
    records: Sequence[Record]
    removed_earlier: Sequence[str] = ()
    collateral: Sequence[Collateral] = ()
    history: Sequence[Step] = ()
    truth_ratios: TruthRatios = TruthRatios()
    approval: Mapping[str, Any] | None = None
    caveats: Sequence[str] = ()
    purge: Mapping[str, Any] | None = None
    publication: Publication | None = None
    rejected: Rejected | None = None
    retain_drop: float | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: an unknown verdict or tier, a verdict that is not the worst record's, no record, or no changed weights.
        """
        unknown = {self.verdict, *(record.verdict for record in self.records)} - VERDICTS.keys()
        if unknown or self.tier not in TIERS:
            raise ValueError(
                f"expected verdicts of {list(VERDICTS)} and a tier of {list(TIERS)}, got {unknown or self.tier}"
            )
        if not self.records:
            raise ValueError("expected at least one record, got none")
        hashes = [one for record in self.records for one in (record.record, record.content)]
        if not all(re.fullmatch("[0-9a-f]{64}", one) for one in [*hashes, *(one.record for one in self.collateral)]):
            raise ValueError(
                "records, collateral: expected salted hashes (64 hexadecimal digits), as Ledger.record_hash and .salted give"
            )
        found = worst([record.verdict for record in self.records])
        if self.verdict != found:
            raise ValueError(f"the worst record decides: expected the verdict {found}, got {self.verdict}")
        if not self.change.changed:
            raise ValueError("no tensor changed: there is nothing to give evidence of")


def worst(verdicts: Sequence[str]) -> str:
    """The worst of some verdicts."""
    return min(verdicts, key=list(VERDICTS).index)
