"""Evidence files: written once, chained into the ledger if there is one, signed if a key is named, checked by whoever has them.

`evidence.json` is canonical JSON of `Evidence` and of where it stands in the ledger. Beside it `evidence.seal.json` holds its
sha256, the event of the ledger that holds that too, and the signature of its bytes with the key to check it by.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from curation.errors import DataError, LedgerError
from curation.unlearning import signing
from curation.unlearning.canonical import canonical
from curation.unlearning.chain import Event
from curation.unlearning.evidence_model import LIMITS, TIERS, UNCHAINED, UNCOMPARED, VERDICTS, VERSION, Evidence, worst
from curation.unlearning.evidence_words import meaning
from curation.unlearning.ledger import Ledger
from curation.unlearning.requests import Batch, named_in
from curation.unlearning.statuses import PUBLISHED
from lorif_core.atomic import file_digest, write_bytes

logger = logging.getLogger(__name__)

NAME = "evidence.json"
MODEL = "model"
"""What the model is called among the hashes."""
KIND = "evidence"
"""The kind of the ledger's event."""
DIGEST, SIGNATURE = "digest", "signature"
_USERS_WORDS = ("title", "duplicates_rule", "method", "references", "approval", "caveats", "ledger", "publication")


def document(evidence: Evidence, ledger: Ledger | None = None, batch: Batch | None = None) -> dict[str, Any]:
    """What the file says: the evidence, what its words mean, and the batch's last step in the ledger, None without one."""
    names = dict.fromkeys(test.name for test in evidence.tests)
    said = {
        "version": VERSION,
        **asdict(evidence),
        "measures": [{"name": name, "meaning": words} for name in names if (words := meaning(name)) is not None],
        "verdicts": [{"name": name, "meaning": meaning} for name, meaning in VERDICTS.items()],  # worst first
        "tiers": [{"name": name, "meaning": meaning} for name, meaning in TIERS.items()],  # strongest first
    }
    if ledger is None or batch is None:
        return said | {"limits": [*LIMITS, UNCHAINED], "ledger": None}
    return said | {"limits": list(LIMITS), "ledger": _place(ledger, batch)}


def _place(ledger: Ledger, batch: Batch) -> dict[str, Any]:
    """Where a batch stands in the ledger, and the requests in it."""
    steps = [event for event in ledger.events() if event.batch == batch.number and event.kind == batch.status]
    if not steps:
        raise LedgerError(f"batch {batch.number} of the ledger is not {batch.status}: give the batch as it stands")
    requests = [
        {"number": one.number, "submitted": one.submitted, "reason": one.reason, "records": one.records}
        for one in batch.requests
    ]
    place = {"batch": batch.number, "dataset": batch.dataset, "digest": batch.digest, "requests": requests}
    return place | {"sequence": steps[-1].number, "head": steps[-1].hash}


def write(
    folder: Path,
    evidence: Evidence,
    ledger: Ledger | None = None,
    batch: Batch | None = None,
    key: Ed25519PrivateKey | None = None,
    ids: Iterable[str] = (),
) -> Path:
    """Write the file, note its digest in the ledger, and write its seal; repeated after a crash, the same comes of it.

    To be called before the batch is published, while its ids are there to see that none of them is in the file.

    Args:
        folder: where it is put.
        evidence: what it says.
        ledger: what it is chained into; None: nothing.
        batch: of the ledger, that it is about.
        key: that signs it.
        ids: of records that it must not name, beside the batch's.

    Raises:
        LedgerError: the file would name a removed record, or the batch is no longer as given.
        ValueError: a number that is not finite; the message says where.
    """
    said = document(evidence, ledger, batch)
    check_names(said, {*ids, *(batch.ids if batch is not None else ())})
    data = canonical(said)
    path = folder / NAME
    whole = write_bytes(path, data)
    seal: dict[str, Any] = {DIGEST: whole, "event": None}
    if ledger is not None and batch is not None:
        noted = [one for one in ledger.events(KIND) if one.batch == batch.number and one.details[DIGEST] == whole]
        event = noted[-1] if noted else ledger.note(batch, KIND, {DIGEST: whole})
        seal["event"] = {"number": event.number, "hash": event.hash}
    if key is not None:
        public = key.public_key()
        signature = base64.b64encode(key.sign(data)).decode()
        seal |= {SIGNATURE: signature, "public_key": signing.pem(public), "fingerprint": signing.fingerprint(public)}
    write_bytes(seal_path(path), canonical(seal))
    logger.info("evidence written to %s (sha256 %s)", path, whole)
    return path


def check_names(said: Mapping[str, Any], ids: Iterable[str]) -> None:
    """See to it that a document names no record.

    Raises:
        LedgerError: it does.
    """
    # The records' own hashes are seen to by Evidence; the rest of what is left out is figures and words of ours.
    words = [*_texts({name: said[name] for name in _USERS_WORDS}), *(record["found"] for record in said["records"])]
    if named_in("\n".join(words), ids):
        raise LedgerError(
            "the evidence would name a record that is to be removed; use its salted hash (Ledger.record_hash)"
        )


def read(path: Path) -> dict[str, Any]:
    """What an evidence file says.

    Raises:
        DataError: there is no such file, or it is none.
    """
    said = _object(path)
    place = said.get("ledger", ())
    requests: Any = [] if place is None else place.get("requests") if isinstance(place, dict) else None
    parts = [said.get("records"), requests]
    whole = all(isinstance(part, list) and all(isinstance(one, dict) for one in part) for part in parts)
    if said.get("version") != VERSION or not whole:
        raise DataError([f"{path}: expected an evidence file of version {VERSION}"])
    return said


def seal_path(path: Path) -> Path:
    """Where the seal of an evidence file lies."""
    return path.with_suffix(".seal.json")


def signer(path: Path) -> str | None:
    """Fingerprint of the key that the seal of an evidence file names; None where it names none, or has no signature."""
    try:
        seal = _object(seal_path(path))
        return signing.fingerprint(_key_in(seal)) if SIGNATURE in seal else None
    except DataError:
        return None


def verify(path: Path, ledger: Ledger | None = None, public_key: Ed25519PublicKey | None = None) -> list[str]:
    """What is wrong with an evidence file: its digest and form; its signature; its entry in the ledger and the whole chain.

    Without `public_key` a signature is checked by the key in the seal, which shows that the file was not damaged, not whose
    it is. Without `ledger` nothing is said of the chain.

    Raises:
        DataError: there is no such file, or it is none.
    """
    said, data = read(path), path.read_bytes()
    whole = hashlib.sha256(data).hexdigest()
    problems = _content(said, data)
    seal = _seal(path, problems)
    if seal is not None:
        if seal.get(DIGEST) != whole:
            problems.append(f"digest: the file has sha256 {whole}, its seal says {seal.get(DIGEST)}: it was changed")
        problems += _signature(data, seal, public_key)
    elif public_key is not None:
        problems.append("signature: a key was given, but there is no seal with a signature")
    if ledger is not None:
        problems += [f"ledger: {problem}" for problem in ledger.check()]
        problems += _entry(said, whole, seal, ledger)
    return problems


def model_problems(said: Mapping[str, Any], model: Path) -> list[str]:
    """Why an evidence is not about the model in a file: it has another sha256 than the model after.

    Raises:
        DataError: there is no such file.
    """
    try:
        found = file_digest(model)
    except OSError as error:
        raise DataError([f"{model}: {error.strerror}"]) from None
    hashes = [one for one in said.get("hashes", ()) if isinstance(one, dict) and one.get("name") == MODEL]
    if any(one.get("after") == found for one in hashes):
        return []
    known = " (the model before, which knows the records)" if any(one.get("before") == found for one in hashes) else ""
    return [f"model: {model} has sha256 {found}{known}, the file is about {[one.get('after') for one in hashes]}"]


def published(path: Path, ledger: Ledger) -> Event | None:
    """The event by which the ledger says that the model of an evidence file was published; None: it does not."""
    place = read(path)["ledger"]
    if place is None:
        return None
    done, whole = _published(ledger, place.get("batch")), hashlib.sha256(path.read_bytes()).hexdigest()
    return done if done is not None and done.details.get(DIGEST, whole) == whole else None


def _published(ledger: Ledger, batch: object) -> Event | None:
    return next((event for event in ledger.events(PUBLISHED) if event.batch == batch), None)


def _content(said: dict[str, Any], data: bytes) -> list[str]:
    """What the file itself must be, whatever is kept elsewhere."""
    problems = []
    if canonical(said) != data:
        problems.append("form: not canonical JSON: it was edited or written by something else")
    verdicts = [str(record.get("verdict")) for record in said["records"]]
    if not verdicts or set(verdicts) - VERDICTS.keys() or said.get("verdict") != worst(verdicts):
        problems.append(f"verdict: {said.get('verdict')} is not that of the worst record")
    if str(said.get("tier")) not in TIERS:
        problems.append(f"tier: expected one of {', '.join(TIERS)}, got {said.get('tier')}")
    compared = bool(said.get("references"))
    if compared == (said.get("tier") in UNCOMPARED) or not (compared or set(verdicts) == {"UNTESTABLE"}):
        problems.append(
            f"tier: {said.get('tier')} and {said.get('verdict')} do not go with {'' if compared else 'no '}models to compare with"
        )
    return problems


def _seal(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The seal; None and a problem where it is missing or unreadable."""
    try:
        return _object(seal_path(path))
    except DataError as error:
        problems.append(f"seal: {error}")
        return None


def _signature(data: bytes, seal: dict[str, Any], public_key: Ed25519PublicKey | None) -> list[str]:
    if SIGNATURE not in seal:
        if seal.keys() & {"public_key", "fingerprint"}:
            return ["signature: the seal names a key, but its signature is gone"]
        return [] if public_key is None else ["signature: a key was given, but the file is not signed"]
    try:
        key = _key_in(seal)
        signature = base64.b64decode(str(seal[SIGNATURE]), validate=True)
    except (DataError, binascii.Error) as error:
        return [f"signature: cannot be read: {error}"]
    problems = []
    if seal.get("fingerprint") != signing.fingerprint(key):
        problems.append("signature: the fingerprint in the seal is not that of its key")
    if public_key is not None and signing.fingerprint(public_key) != signing.fingerprint(key):
        problems.append(
            f"signature: expected the key {signing.fingerprint(public_key)}, signed with {signing.fingerprint(key)}"
        )
    if not signing.is_signed(data, signature, public_key or key):
        problems.append("signature: it is not that of this file")
    return problems


def _key_in(seal: Mapping[str, Any]) -> Ed25519PublicKey:
    """The key that a seal names.

    Raises:
        DataError: it names none.
    """
    return signing.parse_public(str(seal.get("public_key")).encode(), "seal")


def _entry(said: dict[str, Any], whole: str, seal: dict[str, Any] | None, ledger: Ledger) -> list[str]:
    """Whether the ledger holds this file's digest, and the file the ledger's hashes."""
    place, events = said["ledger"], ledger.events()
    if place is None:
        return ["ledger: the file is of a run without one, and in no chain"]
    problems = []
    noted = [event for event in events if event.kind == KIND and event.batch == place.get("batch")]
    if not any(event.details.get(DIGEST) == whole for event in noted):
        problems.append(f"ledger: no event holds this file's digest for batch {place.get('batch')}")
    elif noted[-1].details[DIGEST] != whole:
        problems.append(f"ledger: event {noted[-1].number} holds the digest of a later evidence file of the same batch")
    done = _published(ledger, place.get("batch"))
    if done is not None and done.details.get(DIGEST, whole) != whole:
        problems.append(f"ledger: event {done.number} says that a model with another evidence file was published")
    if (place.get("sequence"), place.get("head")) not in [(event.number, event.hash) for event in events]:
        problems.append(f"ledger: event {place.get('sequence')} is not the one that the file was written after")
    if seal is not None and seal.get("event") not in [{"number": event.number, "hash": event.hash} for event in noted]:
        problems.append(f"ledger: it has no such event of evidence as the seal names: {seal.get('event')}")
    earlier = said.get("removed_earlier")
    known = {str(record.get("record")) for record in said["records"]}
    known |= {str(one) for one in earlier} if isinstance(earlier, list) else set()
    named = [request.get("number") for request in place["requests"]]
    members = {
        number
        for event in events
        if event.kind == "claimed" and event.batch == place.get("batch")
        for number in event.details["requests"]
    }
    members -= {event.request for event in events if event.kind == "refused"}
    if named != sorted(members):
        problems.append(
            f"ledger: the file is about the requests {named}, batch {place.get('batch')} about {sorted(members)}"
        )
    for number in sorted(members):
        missing = set(ledger.hashes(number)) - known
        if missing:
            problems.append(f"ledger: {len(missing)} records of request {number} are not in the file")
    return problems


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested values, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse)
    except OSError as error:
        raise DataError([f"{path}: {error.strerror}"]) from None
        canonical(value)
    except ValueError:
        raise DataError([f"{path}: not a whole JSON file, or with numbers or text that none can hold"]) from None
    if not isinstance(value, dict):
        raise DataError([f"{path}: expected a JSON object, got {type(value).__name__}"])
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
