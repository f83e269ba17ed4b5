"""`curate requests submit | list | show | verify-evidence`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from curation.unlearning import evidence, signing
from curation.unlearning.ledger import Ledger
from flows.cli import main
from flows.files import digest_file
from tests.curation.unlearning.evidence_example import example, verified

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CURATE_WORKSPACE", str(tmp_path / "workspace"))
    (tmp_path / "ids.txt").write_text("\ufeffperson-1\nperson-2\r\n\nperson-1\n", encoding="utf-8")
    return tmp_path / "workspace"


def said(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> str:
    """What `curate requests` prints, on either stream."""
    assert main(["requests", *command]) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and (printed.err == "") == (code == 0 or "problem" in printed.out)
    return printed.out + printed.err


def test_a_request_is_noted_once_listed_and_shown(
    tmp_path: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit = ["submit", "--ids", str(tmp_path / "ids.txt"), "--reason", "GDPR art. 17"]
    assert said(capsys, *submit) == "request 1: 2 ids noted\n"
    assert said(capsys, *submit) == "request 1: these 2 ids had been submitted; it is submitted\n"
    (tmp_path / "more.txt").write_text("person-2\nperson-3\nperson-4\n")
    more = said(capsys, "submit", "--ids", str(tmp_path / "more.txt"), "--reason", "again")
    assert more == "request 2: 3 ids noted\n1 of them are in request 1 too, which is submitted\n"
    listed = said(capsys, "list").splitlines()
    assert len(listed) == 2 and "2 ids" in listed[0] and "'GDPR art. 17'" in listed[0] and "submitted" in listed[0]
    assert said(capsys, "list", "--status", "published") == "no requests that are published\n"
    shown = said(capsys, "show", "1")
    assert "ids: 'person-1', 'person-2'" in shown and "submitted" in shown
    ledger = Ledger(workspace / "ledger.db")
    for status in ("weighed", "unlearned", "verify_failed"):
        batch = ledger.advance(ledger.drain(), status)
    assert "submitted (last run: verify_failed)" in said(capsys, "list")
    for status in ("weighed", "unlearned", "verified", "published"):
        batch = ledger.advance(ledger.drain(), status)
    assert batch.number == 2
    shown = said(capsys, "show", "1")
    assert "request 1, published" in shown and "ids: erased" in shown and "person-1" not in shown
    assert [line.split()[2] for line in shown.splitlines()[3:]] == [
        "submitted", "claimed", "weighed", "unlearned", "verify_failed",
        "claimed", "weighed", "unlearned", "verified", "published",
    ]  # fmt: skip
    found = json.loads(said(capsys, "show", "1", "--json"))
    assert found["ids"] == [] and found["status"] == "published" and found["events"][0]["details"]["records"] == 2
    assert [one["number"] for one in json.loads(said(capsys, "list", "--json"))] == [1, 2]
    assert json.loads(said(capsys, *submit, "--json"))["repeated"] is True


def test_evidence_is_checked(tmp_path: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.mkdir()
    ledger, batch = verified(workspace, ["person-1", "person-2"])
    key = Ed25519PrivateKey.generate()
    path = evidence.write(tmp_path, example(ledger, ["person-1", "person-2"]), ledger, batch, key)
    (tmp_path / "public.pem").write_text(signing.pem(key.public_key()))
    good = said(capsys, "verify-evidence", str(path), "--key", str(tmp_path / "public.pem"))
    assert good.endswith(f"the key given\nledger: 7 events followed\nnothing wrong: {path}\n")
    assert good.startswith("published: not by this ledger\n")
    whole, digest = path.read_text(), digest_file(path)
    assert "not looked at (--no-ledger)" in said(capsys, "verify-evidence", str(path), "--no-ledger")
    assert "not compared with a key of yours" in said(capsys, "verify-evidence", str(path), "--no-ledger")
    (tmp_path / "other.pem").write_text(signing.pem(Ed25519PrivateKey.generate().public_key()))
    other = said(capsys, "verify-evidence", str(path), "--key", str(tmp_path / "other.pem"), code=1)
    assert "another than the key given" in other and "2 problems: " in other
    seal = json.loads(evidence.seal_path(path).read_text())
    evidence.seal_path(path).write_text(json.dumps({name: seal[name] for name in seal if name != "signature"}))
    stripped = said(capsys, "verify-evidence", str(path), code=1)
    assert "the seal names a key, but its signature is gone" in stripped and "signature: none" in stripped
    evidence.seal_path(path).write_text(json.dumps(seal))
    model = tmp_path / "model.ckpt"
    model.write_bytes(b"another")
    other = said(capsys, "verify-evidence", str(path), "--model", str(model), code=1)
    assert f"model: {model} has sha256 {digest_file(model)}, the file is about ['" in other and "1 problem: " in other
    path.write_text(path.read_text().replace('"tier":"E2"', '"tier":"E0"'))
    bad = said(capsys, "verify-evidence", str(path), code=1)
    assert "digest: the file has sha256" in bad and "problems: " in bad
    found = json.loads(said(capsys, "verify-evidence", str(path), "--json", code=1))
    assert len(found["problems"]) == 3 and found["tier"] == "E0" and found["ledger"] is True
    ledger.advance(batch, "published", {"digest": digest})
    found = json.loads(said(capsys, "verify-evidence", str(path), "--json", code=1))
    assert "event 8 says that a model with another evidence file was published" in str(found["problems"])
    assert found["published"] is None, "not this one"
    path.write_text(whole)
    assert said(capsys, "verify-evidence", str(path)).startswith("published: event 8, ")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["frobnicate"], "known: submit, list, show, verify-evidence"),
        (["submit", "--reason", "x"], "required: --ids"),
        (["submit", "--ids", "/nowhere", "--reason", "x"], "--ids: /nowhere: No such file or directory"),
        (["submit", "--ids", "IDS", "--reason", " "], "--reason: expected some text"),
        (["submit", "--ids", "IDS", "--reason", "for person-2"], "--reason: it names the record 'person-2'"),
        (["submit", "--ids", "EMPTY", "--reason", "x"], "has no ids; expected one a line"),
        (["submit", "--ids", "BINARY", "--reason", "x"], "is not text in UTF-8"),
        (["submit", "--ids", "IDS", "--reason", "x", "--frobnicate"], "unknown arguments: --frobnicate"),
        (["list"], "no ledger at"),
        (["list", "--ledger", "sqlite://"], "must outlive this process"),
        (["list", "--status", "done"], "--status: expected one of approved"),
        (["show", "1"], "no ledger at"),
        (["show", "one"], "invalid int value"),
        (["verify-evidence", "/nowhere"], "/nowhere: No such file"),
        (["verify-evidence", "IDS"], "not a whole JSON file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_exit_code_2(
    command: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    files = {"IDS": "ids.txt", "EMPTY": "empty.txt", "BINARY": "binary.txt"}
    typed = [str(tmp_path / files[word]) if word in files else word for word in command]
    assert expected in said(capsys, *typed, code=2)


def test_a_request_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "submit", "--ids", str(tmp_path / "ids.txt"), "--reason", "x", "--ledger", str(tmp_path / "other.db"))
    assert "no request 7" in said(capsys, "show", "7", "--ledger", f"sqlite:///{tmp_path}/other.db", code=2)


def test_a_ledger_that_is_damaged_is_told(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.mkdir()
    (workspace / "ledger.db").write_text("no database at all\n" * 60)
    assert "file is not a database" in said(capsys, "list", code=2)


def test_the_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from flows.cli import main; main(['requests', 'submit', '--help']);"
        "print([name for name in ('torch', 'sqlalchemy', 'cryptography', 'polars', 'prefect') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--reason TEXT" in result.stdout and result.stdout.strip().endswith("[]")
