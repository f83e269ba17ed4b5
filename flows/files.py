"""Files that appear whole or not at all, digests, and the workspace's layout."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from lorif_core.atomic import replacing, write_bytes


def write_json(path: Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())
    return path


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``; None when the file is missing or not a whole JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def copy_atomic(source: Path, target: Path) -> Path:
    """Copy ``source`` to ``target``, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as given, replacing(target) as file:
        shutil.copyfileobj(given, file)
    return target


def digest_of(value: Any) -> str:
    """sha256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest() -> str:
    """sha256 (hex) of the sources that decide a stage's result, so that no other version's result is reused."""
    top = Path(__file__).resolve().parent.parent
    whole = hashlib.sha256()
    for folder in ("lorif_core", "curation", "flows/stages"):
        for path in sorted((top / folder).rglob("*")):
            if path.suffix in {".py", ".j2", ".css", ".js"} and path.is_file():
                whole.update(path.relative_to(top).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
