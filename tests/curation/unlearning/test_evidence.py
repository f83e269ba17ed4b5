"""Evidence says what was measured, can be checked by others, and claims no more than that."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from curation.errors import DataError, LedgerError
from curation.unlearning import evidence, evidence_model, signing
from curation.unlearning.canonical import canonical
from curation.unlearning.evidence_page import render
from curation.unlearning.ledger import Ledger
from curation.unlearning.verification.verdicts import WORST_FIRST
from lorif_core.atomic import file_digest
from tests.curation.unlearning.evidence_example import HASH, example, uncompared, verified
from tests.curation.unlearning.test_chain import tamper

IDS = [f"person-{number}" for number in range(5)]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Ledger]:
    """A signed file, and the ledger of the batch it is about, published since."""
    ledger, batch = verified(tmp_path, IDS)
    path = evidence.write(tmp_path, example(ledger, IDS), ledger, batch, KEY)
    ledger.advance(batch, "published")
    return path, ledger


def key_file(path: Path, key: object = KEY, password: bytes | None = None) -> Path:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return path


def test_what_is_written_can_be_checked(written: tuple[Path, Ledger]) -> None:
    path, ledger = written
    assert evidence.verify(path, ledger, KEY.public_key()) == []
    assert evidence.verify(path) == [] and evidence.signer(path) == signing.fingerprint(KEY.public_key())
    said = evidence.read(path)
    assert canonical(said) == path.read_bytes() and said["ledger"]["batch"] == 1
    assert {record["record"] for record in said["records"]} == set(ledger.hashes(1))
    assert not any(one.encode() in path.read_bytes() for one in IDS)
    assert ledger.events("evidence")[0].details["digest"] == file_digest(path)


def test_a_model_is_the_one_it_is_about_or_not(tmp_path: Path) -> None:
    ledger, batch = verified(tmp_path, IDS)
    before, after = tmp_path / "before.ckpt", tmp_path / "after.ckpt"
    before.write_bytes(b"before")
    after.write_bytes(b"after")
    hashes = [evidence_model.Hashes("model", file_digest(before), file_digest(after))]
    said = evidence.read(evidence.write(tmp_path, example(ledger, IDS, hashes=hashes), ledger, batch))
    assert evidence.model_problems(said, after) == []
    (problem,) = evidence.model_problems(said, before)
    assert "(the model before, which knows the records)" in problem and file_digest(after) in problem
    with pytest.raises(DataError, match="No such file"):
        evidence.model_problems(said, tmp_path / "none.ckpt")


def test_a_repeated_write_changes_nothing(tmp_path: Path) -> None:
    ledger, batch = verified(tmp_path, IDS)
    path = evidence.write(tmp_path, example(ledger, IDS), ledger, batch, KEY)
    before = path.read_bytes(), evidence.seal_path(path).read_bytes()
    evidence.write(tmp_path, example(ledger, IDS), ledger, ledger.drain(), KEY)
    assert (path.read_bytes(), evidence.seal_path(path).read_bytes()) == before
    assert len(ledger.events("evidence")) == 1


def test_an_older_file_of_a_batch_is_told_from_the_last(tmp_path: Path) -> None:
    ledger, batch = verified(tmp_path, IDS)
    first = evidence.write(tmp_path, example(ledger, IDS), ledger, batch)
    kept = first.read_bytes(), evidence.seal_path(first).read_bytes()
    evidence.write(tmp_path, example(ledger, IDS, title="second"), ledger, batch)
    assert evidence.verify(first, ledger) == []
    first.write_bytes(kept[0])
    evidence.seal_path(first).write_bytes(kept[1])
    [problem] = evidence.verify(first, ledger)
    assert "a later evidence file of the same batch" in problem


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("OVER_UNLEARNED", "CONSISTENT_WITH_RETRAIN", ("digest: ", "signature: ", "ledger: no event")),
        ('"tier":"E2"', '"tier":"E9"', ("digest: ", "tier: expected one of E0, E1")),
        ('"tolerance":2.0', '"tolerance": 2.0', ("digest: ", "form: not canonical")),
        ('"verdict":"OVER_UNLEARNED","verdicts"', '"verdict":"RESIDUAL","verdicts"', ("verdict: RESIDUAL is not",)),
        ('"sequence":6', '"sequence":5', ("ledger: event 5 is not the one",)),
    ],
)
def test_a_changed_file_is_found(written: tuple[Path, Ledger], old: str, new: str, said: tuple[str, ...]) -> None:
    path, ledger = written
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    problems = evidence.verify(path, ledger)
    assert all(any(problem.startswith(one) for problem in problems) for one in said), problems


def test_a_record_left_out_is_found_even_by_one_with_the_key(tmp_path: Path) -> None:
    ledger, batch = verified(tmp_path, IDS)
    path = evidence.write(tmp_path, example(ledger, IDS[1:]), ledger, batch, KEY)
    [problem] = evidence.verify(path, ledger)
    assert problem == "ledger: 1 records of request 1 are not in the file"
    earlier = example(ledger, IDS[1:], removed_earlier=[ledger.record_hash(IDS[0])])
    assert evidence.verify(evidence.write(tmp_path, earlier, ledger, batch), ledger) == []


def test_another_key_a_damaged_seal_and_a_tampered_ledger_are_named(written: tuple[Path, Ledger]) -> None:
    path, ledger = written
    other = Ed25519PrivateKey.generate().public_key()
    assert any("expected the key" in problem for problem in evidence.verify(path, None, other))
    seal = json.loads(evidence.seal_path(path).read_bytes())
    for change, said in (
        ({"signature": "AAAA"}, "signature: it is not that of this file"),
        ({"signature": "%"}, "signature: cannot be read"),
        ({"fingerprint": HASH}, "the fingerprint in the seal"),
        ({"event": {"number": 2, "hash": HASH}}, "no such event of evidence as the seal names"),
    ):
        evidence.seal_path(path).write_bytes(canonical(seal | change))
        assert any(said in problem for problem in evidence.verify(path, ledger)), change
    evidence.seal_path(path).unlink()
    assert [problem.split(":")[0] for problem in evidence.verify(path, ledger, KEY.public_key())] == [
        "seal",
        "signature",
    ]
    evidence.seal_path(path).write_bytes(canonical(seal))
    tamper(path.with_name("ledger.db"), "UPDATE events SET time = '2001' WHERE number = 3")
    assert any(problem.startswith("ledger: event 3") for problem in evidence.verify(path, ledger))


def test_unsigned_evidence_is_no_problem_unless_a_key_is_asked_for(tmp_path: Path) -> None:
    ledger, batch = verified(tmp_path, IDS)
    path = evidence.write(tmp_path, example(ledger, IDS), ledger, batch)
    assert evidence.verify(path, ledger) == [] and evidence.signer(path) is None
    assert evidence.verify(path, ledger, KEY.public_key()) == ["signature: a key was given, but the file is not signed"]


def test_evidence_never_names_a_removed_record(tmp_path: Path) -> None:
    ledger, batch = verified(tmp_path, IDS)
    with pytest.raises(LedgerError, match="would name a record"):
        evidence.write(tmp_path, example(ledger, IDS, caveats=("person-2 was hard",)), ledger, batch)
    with pytest.raises(ValueError, match="nan has no JSON"):
        evidence.write(tmp_path, example(ledger, IDS, tolerance=float("nan")), ledger, batch)
    assert not (tmp_path / evidence.NAME).exists() and ledger.events("evidence") == ()


def test_evidence_does_not_contradict_itself(tmp_path: Path) -> None:
    ledger, _ = verified(tmp_path, IDS)
    good = example(ledger, IDS)
    for change, said in (
        ({"verdict": "CONSISTENT_WITH_RETRAIN"}, "the worst record decides: expected the verdict OVER_UNLEARNED"),
        ({"verdict": "FORGOTTEN"}, "expected verdicts of"),
        ({"tier": "E5"}, "got E5"),
        ({"records": []}, "at least one record"),
        ({"records": [replace(good.records[-1], content="person-4")]}, "expected salted hashes"),
        ({"change": evidence_model.WeightChange({}, 12, 0)}, "no tensor changed"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(good, **change)


def test_it_claims_no_more_than_evidence(written: tuple[Path, Ledger]) -> None:
    path, _ = written
    for text in (path.read_text(), render(evidence.read(path), HASH), evidence.seal_path(path).read_text()):
        words = re.sub(r"\s+", " ", text).lower()
        assert "complian" not in words and "proof" not in words and "certif" not in words and "guarantee" not in words
    assert "Whether this meets a legal duty is for people to judge." in path.read_text()


def test_a_key_is_read_with_the_password_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.PASSWORD_VARIABLE, raising=False)
    plain, locked = key_file(tmp_path / "plain.pem"), key_file(tmp_path / "locked.pem", password=b"secret")
    assert signing.private_key(plain).private_bytes_raw() == bytes(range(32))
    with pytest.raises(DataError, match="set the environment variable CURATE_KEY_PASSWORD"):
        signing.private_key(locked)
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "wrong")
    with pytest.raises(DataError, match="or CURATE_KEY_PASSWORD is not its password"):
        signing.private_key(locked)
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "secret")
    assert signing.private_key(locked).private_bytes_raw() == signing.private_key(plain).private_bytes_raw()
    with pytest.raises(DataError, match="expected an Ed25519 key, got"):
        signing.private_key(key_file(tmp_path / "ec.pem", ec.generate_private_key(ec.SECP256R1())))
    (tmp_path / "public.pem").write_text(signing.pem(KEY.public_key()))
    assert signing.public_key(tmp_path / "public.pem") == KEY.public_key()
    with pytest.raises(DataError, match="expected a public key in PEM"):
        signing.public_key(plain)
    with pytest.raises(DataError, match="No such file"):
        signing.private_key(tmp_path / "none.pem")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": NaN}',
        '{"version": 1, "ledger": {"requests": [1]}, "records": []}',
    ],
)
def test_what_is_no_evidence_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="x.json"):
        evidence.verify(tmp_path / "x.json")


@pytest.mark.parametrize("other", [None, [], [[]], {}, {"a": []}, -1, "x"], ids=repr)
def test_whatever_is_put_in_its_place_is_a_problem_not_a_crash(written: tuple[Path, Ledger], other: object) -> None:
    path, ledger = written
    for file in (path, evidence.seal_path(path)):
        good = file.read_bytes()
        said = json.loads(good)
        places = [(said, name) for name in said]
        for inner in ("ledger", "event"):
            places += [(said[inner], name) for name in said.get(inner, {})]
        for holder, name in places:
            kept, holder[name] = holder[name], other
            file.write_bytes(canonical(said))
            with suppress(DataError):  # it is no evidence file any more
                assert kept == other or evidence.verify(path, ledger), name
            holder[name] = kept
        file.write_bytes(good)


@pytest.mark.parametrize("tier", evidence_model.UNCOMPARED)
def test_evidence_without_models_to_compare_with_shows_nothing(tmp_path: Path, tier: str) -> None:
    ledger, batch = verified(tmp_path, IDS)
    good, full = uncompared(ledger, IDS, tier), example(ledger, IDS)
    path = evidence.write(tmp_path, good, ledger, batch, KEY)
    assert evidence.verify(path, ledger, KEY.public_key()) == []
    shown = {"records": full.records, "verdict": full.verdict}
    for bad, said in (
        (replace(good, references=full.references), f"{tier} and UNTESTABLE do not go with models to compare with"),
        (replace(good, tier="E2"), "E2 and UNTESTABLE do not go with no models to compare with"),
        (replace(good, **shown), f"{tier} and OVER_UNLEARNED do not go with no models to compare with"),
    ):
        assert evidence.verify(evidence.write(tmp_path, bad, key=KEY)) == [f"tier: {said}"]


def test_evidence_and_verification_order_verdicts_alike() -> None:
    assert tuple(evidence_model.VERDICTS) == WORST_FIRST


def test_evidence_without_a_ledger_says_so_and_is_checked(tmp_path: Path) -> None:
    ledger, _ = verified(tmp_path, IDS)
    path = evidence.write(tmp_path, example(ledger, IDS), key=KEY, ids=IDS)
    said = evidence.read(path)
    assert said["ledger"] is None and evidence_model.UNCHAINED in said["limits"]
    assert evidence.verify(path, None, KEY.public_key()) == [] and ledger.events("evidence") == ()
    assert "ledger: the file is of a run without one, and in no chain" in evidence.verify(path, ledger)
    before = path.read_bytes(), evidence.seal_path(path).read_bytes()
    evidence.write(tmp_path, example(ledger, IDS), key=KEY, ids=IDS)
    assert (path.read_bytes(), evidence.seal_path(path).read_bytes()) == before
    path.write_text(path.read_text().replace('"version":"3"', '"version":"4"'))
    assert [problem.split(":")[0] for problem in evidence.verify(path)] == ["digest", "signature"]
    with pytest.raises(LedgerError, match="would name a record"):
        evidence.write(tmp_path, example(ledger, IDS, title="of person-3"), ids=IDS)
    assert evidence.write(tmp_path, example(ledger, IDS), ids=["person", "seed", "E2"]), "words of ours name nobody"
