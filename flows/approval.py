"""A person's approval of a run, bound to the digest of the records it is about and of what follows: a file in the run's folder.

`curate unlearn` writes the question, `curate approve RUN` the answer, and the next start of the run goes on from there. Who
answers is who they say they are: there is no login, but whoever can write to the folder could do anything else there, too.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from curation.unlearning.canonical import canonical
from flows.errors import ConfigError
from flows.files import read_json, write_json
from flows.outputs import LOCK, RUN, SUMMARY
from flows.recorded import CONFIG

if TYPE_CHECKING:
    from curation.unlearning.salt import Salt

APPROVAL = "approval.json"
AWAITING, APPROVED, REJECTED, EXPIRED = "awaiting_approval", "approved", "rejected", "expired"
_ASKED = {"digest", "follows", "asked", "expires_after", "decision"}


def digest_of(file: Path, follows: Sequence[str], salt: Salt, dataset: str) -> str:
    """Salted hash (hex) of which records are meant, of what is in them, and of what becomes of the result.

    Args:
        file: `records` of the stage resolve.
        follows: what happens once it is approved, a sentence each.
        salt: so that the digest, which stays in ledger and evidence, gives no id away.
        dataset: name of the data.
    """
    import polars as pl

    rows = pl.read_parquet(file).select(pl.col("example_id").cast(pl.String), "content").sort("example_id")
    return salt.salted(
        "approval", dataset, canonical(list(follows)).decode(), *(p for row in rows.iter_rows() for p in row)
    )


def status(folder: Path, digest: str, hours: float | None, follows: Sequence[str] = ()) -> str:
    """How it stands with the approval; asked for where it was not, or was for other records or to another end.

    Args:
        folder: of the run.
        digest: `digest_of`.
        hours: after which a question without an answer, or an approval that was not acted on, is void; None: never.
        follows: what happens once it is approved, shown to who is asked.
    """
    entry = _read(folder)
    if entry is None or entry["digest"] != digest:
        asked = {"digest": digest, "follows": list(follows), "asked": _now(), "expires_after": hours, "decision": None}
        write_json(folder / APPROVAL, asked)
        return AWAITING
    if entry.get("acted_on"):
        return APPROVED
    if entry["decision"] != REJECTED and _is_void(entry):
        return EXPIRED
    if entry["decision"] == APPROVED:
        write_json(folder / APPROVAL, entry | {"acted_on": _now()})  # from here on a crash does not ask again
    return str(entry["decision"] or AWAITING)


def entry_of(folder: Path) -> dict[str, Any] | None:
    """What is known of the approval: `digest`, what `follows`, `asked`, `decision`, `by`, `decided`, `reason`, the `command`."""
    entry = _read(folder)
    if entry is None:
        return None
    command = shlex.join(["curate", "approve", str(folder), "--digest", entry["digest"]])
    kept = {name: entry.get(name) for name in ("digest", "follows", "asked", "decision", "by", "decided", "reason")}
    return kept | {"command": command}


def evidence_of(folder: Path) -> dict[str, str] | None:
    """What the evidence says of it."""
    entry = _read(folder)
    if entry is None or entry["decision"] != APPROVED:
        return None
    return {name: str(entry[name]) for name in ("digest", "by", "decided")}


def forget(folder: Path) -> None:
    """Let the next start ask anew."""
    (folder / APPROVAL).unlink(missing_ok=True)


def approve(options: argparse.Namespace) -> int:
    """Answer: approve the records of a run, or reject them.

    Raises:
        ConfigError: the run asks for nothing, or for something else than what is answered, or is at work.
    """
    workspace = Path(os.path.abspath(os.path.expanduser(options.workspace)))
    folder = Path(options.run).expanduser().absolute()
    if not folder.is_dir():
        folder = workspace / "runs" / options.run
    if not folder.is_dir():
        raise ConfigError(f"RUN: no run at {options.run}, and no {folder}")
    try:
        with FileLock(folder / LOCK, timeout=0):
            entry = _answer(folder, options)
    except Timeout:
        raise ConfigError(f"RUN: a process is at work on {folder}: wait for it to end") from None
    print(f"{entry['decision']} by {entry['by']}: {folder}")
    if entry["decision"] == APPROVED:
        for sentence in entry["follows"]:
            print(sentence)
    print(f"Go on with: {(read_json(folder / RUN) or {}).get('command')}")
    return 0


def _answer(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Note the answer; gives it, and what `follows`."""
    entry = _read(folder)
    if entry is None:
        raise ConfigError(
            f"RUN: {folder} asks for no approval: its configuration has no approval.required, or it has not run"
        )
    by, reason = options.by or _user(), options.reason or ""
    problems = []
    if options.digest != entry["digest"]:
        problems.append(
            f"--digest: these are not the records that {folder} asks for now ({entry['digest']}), or what follows is another "
            "thing: look at its records.parquet and summary.json, then answer for that digest"
        )
    if entry.get("acted_on"):
        problems.append(f"RUN: approved by {entry['by']}, and acted on since {entry['acted_on']}")
    elif _is_void(entry):
        problems.append(f"RUN: the question of {entry['asked']} has expired; run curate unlearn to have it asked anew")
    ended = read_json(folder / SUMMARY) or {}
    if ended.get("status") == REJECTED and ended.get("batch") is not None:
        problems.append(
            "RUN: it was rejected, which has closed its requests: submit them again to have them asked anew"
        )
    if options.reject and not reason.strip():
        problems.append("--reason: a rejection needs one")
    named = (
        None if entry.get("acted_on") else _named(folder, f"{by}\n{reason}")
    )  # a purge may have removed the ids since
    if named is not None:
        problems.append(f"--by, --reason: they name the record {named!r}; both are kept for good")
    if problems:
        raise ConfigError(problems)
    decision = REJECTED if options.reject else APPROVED
    said = {"decision": decision, "by": by, "reason": reason}
    _note(folder, said | {"digest": entry["digest"]})
    write_json(folder / APPROVAL, entry | said | {"decided": _now()})
    return said | {"follows": entry["follows"]}


def _note(folder: Path, said: dict[str, str]) -> None:
    """Note the answer in the ledger, where the run is about requests of one; once, however often it is given."""
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    batch = (read_json(folder / SUMMARY) or {}).get("batch")
    if not config["request"]["ledger"] or batch is None:
        return
    from curation.unlearning.ledger import Ledger
    from flows.requests import ledger_of

    ledger = Ledger(config["request"]["ledger_url"] or ledger_of(Path(config["workspace"])))
    noted = [event for event in ledger.events("approval") if event.batch == batch]
    if not noted or dict(noted[-1].details) != said:
        ledger.note(batch, "approval", said)


def _named(folder: Path, text: str) -> str | None:
    """The record that a text names."""
    import polars as pl

    from curation.unlearning.requests import named_in

    return named_in(text, map(str, pl.read_parquet(folder / "records.parquet")["example_id"].to_list()))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise ConfigError("--by: the system does not know who you are; say it") from None


def _read(folder: Path) -> dict[str, Any] | None:
    """The question and its answer, if there is one; a file that was tampered with counts as none."""
    entry = read_json(folder / APPROVAL)
    return entry if entry is not None and entry.keys() >= _ASKED else None


def _is_void(entry: dict[str, Any]) -> bool:
    if entry["expires_after"] is None:
        return False
    since = datetime.fromisoformat(entry.get("decided") or entry["asked"])
    return datetime.now(UTC) > since + timedelta(hours=entry["expires_after"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
