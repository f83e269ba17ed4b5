"""Models that were unlearned before: only the ledger of that run tells which records must not come back.

A version in MLflow's registry is known for one by its tag, a checkpoint by the evidence that its run left beside it. A copy of a
checkpoint without that evidence is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curation.errors import DataError
from curation.unlearning.statuses import PUBLISHED
from flows.errors import ConfigError
from flows.files import digest_file

if TYPE_CHECKING:
    from curation.unlearning.ledger import Ledger


def evidence_beside(checkpoint: Path) -> str | None:
    """Sha256 of the evidence file in a checkpoint's folder that is about this very model; None where there is none."""
    from curation.unlearning import evidence

    path = checkpoint.with_name(evidence.NAME)
    if not (path.is_file() and checkpoint.is_file()):
        return None
    try:
        models = [one.get("after") for one in evidence.read(path)["hashes"]]
    except (DataError, KeyError, TypeError, AttributeError):  # no evidence of ours
        return None
    return digest_file(path) if digest_file(checkpoint) in models else None


def check_earlier(model: str, digest: str | None, ledger: Ledger | None, dataset: str) -> None:
    """See to it that a model that was unlearned of some records is unlearned of others with its own ledger.

    A model of that kind is judged by models trained without the new records, and may be replaced by one. Trained on data that
    still hold the earlier records, those would know them again; the ledger's batches take them out every time.

    Args:
        model: what names it, key and value.
        digest: sha256 of its evidence; None: it was not unlearned before.
        ledger: that the requests of the run are from; None: they are from none.
        dataset: name of the data in it: what was removed under another name does not stay away.

    Raises:
        ConfigError: the run has no ledger, or one by which that model was not published, or not of this data.
    """
    from curation.unlearning.evidence import DIGEST, KIND

    if digest is None:
        return
    if ledger is not None:
        noted = [event.batch for event in ledger.events(KIND) if event.details[DIGEST] == digest]
        batches = [ledger.batch(number) for number in noted if number is not None]
        if any(batch.status == PUBLISHED and batch.dataset == dataset for batch in batches):
            return
    lacks = (
        "this run takes no requests from a ledger"
        if ledger is None
        else f"the ledger of this run has not published it for request.dataset {dataset}"
    )
    raise ConfigError(
        f"{model} was unlearned of other records before (evidence {digest[:12]}), and {lacks}: nobody could tell "
        "which, and a model trained without the new records alone would know them again. Submit the records to the ledger of "
        "that run, under its request.dataset, and set request.ledger to true, or name the model from before and all records at once"
    )
