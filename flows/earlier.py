"""Models that were unlearned before: only the ledger of that run tells which records must not come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flows.errors import ConfigError
from flows.publishing import EVIDENCE_TAG

if TYPE_CHECKING:
    from curation.unlearning.ledger import Ledger


def check_earlier(uri: str, tags: Mapping[str, str], ledger: Ledger | None) -> None:
    """See to it that a registered model that was unlearned of some records is unlearned of others with its own ledger.

    A model of that kind is judged by models trained without the new records, and may be replaced by one. Trained on data that
    still hold the earlier records, those would know them again; the ledger's batches take them out every time.

    Args:
        uri: of the model.
        tags: of its version.
        ledger: that the requests of the run are from; None: they are from none.

    Raises:
        ConfigError: the run has no ledger, or another than the model's.
    """
    from curation.unlearning.evidence import DIGEST, KIND

    digest = tags.get(EVIDENCE_TAG)
    if digest is None or (ledger and any(event.details[DIGEST] == digest for event in ledger.events(KIND))):
        return
    lacks = "this run takes no requests from a ledger" if ledger is None else "the ledger of this run is another"
    raise ConfigError(
        f"model.registered: {uri} was unlearned of other records before (evidence {digest[:12]}), and {lacks}: nobody could tell "
        "which, and a model trained without the new records alone would know them again. Submit the records to the ledger of "
        "that run and set request.ledger to true, or name the model from before and all records together"
    )
