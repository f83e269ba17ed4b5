"""The secret by which removed records stay recognisable to whoever has it, and to nobody else: HMAC-SHA256 of their ids."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from filelock import FileLock

from curation.errors import LedgerError
from curation.unlearning.canonical import canonical
from curation.unlearning.requests import DATASET, checked_ids
from lorif_core.atomic import sync_folder

BYTES = 32


@dataclass(frozen=True)
class Salt:
    """Hashes that can be told apart and found again, but not guessed without the secret."""

    secret: bytes = field(repr=False)

    @classmethod
    def at(cls, path: Path, *, make: bool = True) -> Self:
        """The salt in a file that only its owner can read; made where there is none.

        Raises:
            LedgerError: it is gone although hashes were made with it (not `make`), not a salt, or open to other users.
        """
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                if not make:
                    raise LedgerError(
                        f"{path} is missing: without it no id can be recognised. Put it back from where {path.stem} was copied"
                    )
                _write_secret(path, secrets.token_bytes(BYTES))
        secret, mode = path.read_bytes(), path.stat().st_mode & 0o777
        if len(secret) != BYTES:
            raise LedgerError(f"{path}: expected {BYTES} bytes, got {len(secret)}")
        if mode & 0o077:
            raise LedgerError(
                f"{path} is open to other users (mode {mode:o}): whoever has it can guess ids. chmod 600 {path}"
            )
        return cls(secret)

    def salted(self, *parts: str) -> str:
        """Hash (hex) of some text: the same text is recognised, what it was is not."""
        return hmac.new(self.secret, canonical(list(parts)), hashlib.sha256).hexdigest()

    def record_hash(self, one: str | int, dataset: str = DATASET) -> str:
        """The hash by which a record is known for good."""
        return self.salted("id", dataset, str(one))

    def digest(self, ids: Iterable[str | int], dataset: str = DATASET) -> str:
        """The hash of a set of ids, whatever their order."""
        return self.salted("ids", dataset, *checked_ids(ids))


def _write_secret(path: Path, data: bytes) -> None:
    """A file that only its owner can read, at no moment anyone else."""
    aside = path.with_name(f".{path.name}.tmp")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)
