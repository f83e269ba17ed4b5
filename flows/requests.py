"""`curate requests submit | list | show | verify-evidence`: the ledger of requests to remove records."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.errors import DataError, LedgerError
from flows.errors import ConfigError

if TYPE_CHECKING:
    from curation.unlearning.chain import Event
    from curation.unlearning.ledger import Ledger
    from curation.unlearning.requests import Request


def ledger_of(workspace: Path) -> Path:
    """Where a workspace keeps its ledger unless another is named."""
    return workspace / "ledger.db"


def submit(options: argparse.Namespace) -> int:
    """Note a request; the same ids again are the same request."""
    ids = read_ids(Path(options.ids))
    from curation.unlearning.requests import DATASET

    ledger = _open(options, new=True)
    try:
        request = ledger.submit(ids, options.reason, options.dataset or DATASET)
    except DataError as error:
        raise ConfigError([f"--{problem}" for problem in error.problems]) from None
    if options.json:
        _print_json(asdict(request))
        return 0
    if request.repeated:
        print(f"request {request.number}: these {request.records:,} ids had been submitted; it is {request.status}")
    else:
        print(f"request {request.number}: {request.records:,} ids noted")
    for other in request.overlaps:
        print(f"{other.records:,} of them are in request {other.request} too, which is {other.status}")
    return 0


def show_all(options: argparse.Namespace) -> int:
    """List the requests, those of one status if it is given."""
    from curation.unlearning.statuses import STATUSES

    if options.status is not None and options.status not in STATUSES:
        raise ConfigError(f"--status: expected one of {', '.join(sorted(STATUSES))}, got {options.status!r}")
    found = _open(options).list(options.status)
    if options.json:
        _print_json([_plain(request) for request in found])
        return 0
    for request in found:
        print(
            f"{request.number:>5}  {_state(request):<32} {request.records:>9,} ids  {request.submitted[:19]}  {request.reason!r}"
        )
    if not found:
        print("no requests" if options.status is None else f"no requests that are {options.status}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Show one request: what it asks for, its ids while they are kept, and what happened."""
    ledger = _open(options)
    if not any(request.number == options.number for request in ledger.list()):
        raise ConfigError(f"ID: the ledger has no request {options.number}; curate requests list shows those it has")
    request, ids = ledger.get(options.number), list(ledger.ids(options.number))
    history = _history(ledger, request.number)
    if options.json:
        events = [{name: getattr(event, name) for name in ("number", "time", "kind", "details")} for event in history]
        _print_json(_plain(request) | {"ids": ids, "events": events})
        return 0
    print(f"request {request.number}, {_state(request)}: {request.records:,} ids of the data {request.dataset!r}")
    print(f"submitted {request.submitted}, reason {request.reason!r}")
    print(f"ids: {', '.join(map(repr, ids[:20]))}{', ...' if len(ids) > 20 else ''}" if ids else "ids: erased")
    for event in history:
        print(f"{event.number:>5}  {event.time}  {event.kind:<13} {json.dumps(dict(event.details), ensure_ascii=True)}")
    return 0


def verify_evidence(options: argparse.Namespace) -> int:
    """Check an evidence file; 1 if anything is wrong with it."""
    from curation.unlearning import evidence, signing

    path = Path(options.path)
    said = evidence.read(path)
    key = None if options.key is None else signing.public_key(Path(options.key))
    unchained = said["ledger"] is None and options.ledger is None
    ledger = None if options.no_ledger or unchained else _open(options)
    problems = evidence.verify(path, ledger, key)
    if options.model is not None:
        problems += evidence.model_problems(said, Path(options.model))
    signer = evidence.signer(path)
    event = None if ledger is None else evidence.published(path, ledger)
    if options.json:
        found = {"path": str(path), "problems": problems, "ledger": ledger is not None, "signed_by": signer}
        found["published"] = event.number if event is not None else None
        _print_json(found | {"verdict": said.get("verdict"), "tier": said.get("tier")})
        return 1 if problems else 0
    for problem in problems:
        print(problem)
    if ledger is not None:
        print(f"published: {'not by this ledger' if event is None else f'event {event.number}, {event.time}'}")
    if key is None:
        whose = "not compared with a key of yours (--key)"
    else:
        whose = "the key given" if signing.fingerprint(key) == signer else "another than the key given"
    print(f"signature: {'none' if signer is None else f'key {signer}, {whose}'}")
    where = "the run had none" if unchained else "not looked at (--no-ledger)"
    print(f"ledger: {where if ledger is None else f'{len(ledger.events())} events followed'}")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{count}: {path}" if problems else f"nothing wrong: {path}")
    return 1 if problems else 0


def _open(options: argparse.Namespace, new: bool = False) -> Ledger:
    """The ledger named, or the workspace's; one that is not there is only made to be written to."""
    workspace = Path(os.path.abspath(os.path.expanduser(options.workspace)))
    where: str | Path = options.ledger or ledger_of(workspace)
    if isinstance(where, str) and (where.startswith("sqlite:///") or "://" not in where):
        where = Path(where.removeprefix("sqlite:///"))
    if isinstance(where, Path) and not new and not where.is_file():
        raise ConfigError(f"--workspace, --ledger: no ledger at {where}; curate requests submit begins one")
    from curation.unlearning.ledger import Ledger

    try:
        return Ledger(where)
    except LedgerError as error:
        raise ConfigError(str(error)) from None


def named_ids(request: Mapping[str, Any]) -> list[str] | None:
    """The ids that the section ``request`` of a configuration names, itself or in a file; None where it names none.

    Raises:
        ConfigError: there is no such file, or no ids in it.
    """
    if request["ids_file"] is not None:
        return list(read_ids(Path(request["ids_file"]), "request.ids_file"))
    return [str(one) for one in request["ids"]] or None


def read_ids(file: Path, option: str = "--ids") -> list[str]:
    """The ids in a text file, one a line."""
    try:
        ids = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ConfigError(f"{option}: {file} is not text in UTF-8; expected one id a line") from None
    except OSError as error:
        raise ConfigError(f"{option}: {file}: {error.strerror}; expected a text file of ids, one a line") from None
    if not ids:
        raise ConfigError(f"{option}: {file} has no ids; expected one a line")
    return ids


def _state(request: Request) -> str:
    """Its status, and how the last run ended if it waits again since."""
    if request.outcome in (None, request.status):
        return request.status
    return f"{request.status} (last run: {request.outcome})"


def _history(ledger: Ledger, number: int) -> list[Event]:
    """The events about a request and about the batches it was in."""
    events = ledger.events()
    batches = {event.batch for event in events if number in event.details.get("requests", [])}
    return [event for event in events if event.request == number or event.batch in batches and event.request is None]


def _plain(request: Request) -> dict[str, Any]:
    """A request without what only an answer to `submit` has."""
    return {name: value for name, value in asdict(request).items() if name not in ("repeated", "overlaps")}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
