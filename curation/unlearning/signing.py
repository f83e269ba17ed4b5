"""Detached Ed25519 signatures with a key of the user's: `openssl genpkey -algorithm ed25519 -out key.pem` makes one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from curation.errors import DataError

PASSWORD_VARIABLE = "CURATE_KEY_PASSWORD"
"""Environment variable with the password of the key file, where it has one."""


def private_key(path: Path, password_variable: str = PASSWORD_VARIABLE) -> Ed25519PrivateKey:
    """The key in a PEM file.

    Raises:
        DataError: there is no such file, it holds no Ed25519 key, or its password is missing or wrong.
    """
    text = os.environ.get(password_variable)
    data = _read(path)
    try:
        # An unencrypted key is one also where the variable is set.
        password = text.encode() if text and b"ENCRYPTED" in data else None
        key = serialization.load_pem_private_key(data, password)
    except TypeError:
        raise DataError([f"{path} needs a password: set the environment variable {password_variable}"]) from None
    except (ValueError, UnsupportedAlgorithm):
        wrong = f", or {password_variable} is not its password" if text else ""
        raise DataError([f"{path}: expected a private key in PEM{wrong}"]) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(
            [f"{path}: expected an Ed25519 key, got {type(key).__name__}: openssl genpkey -algorithm ed25519"]
        )
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file; DataError where there is none."""
    return parse_public(_read(path), str(path))


def parse_public(data: bytes, where: str) -> Ed25519PublicKey:
    """The public key in a PEM text; DataError where it is none."""
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise DataError([f"{where}: expected a public key in PEM: openssl pkey -in key.pem -pubout"]) from None
    if not isinstance(key, Ed25519PublicKey):
        raise DataError([f"{where}: expected an Ed25519 public key, got {type(key).__name__}"])
    return key


def pem(key: Ed25519PublicKey) -> str:
    """The key as PEM."""
    made = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return made.decode()


def fingerprint(key: Ed25519PublicKey) -> str:
    """sha256 (hex) of the key's 32 bytes, to compare by eye."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


def is_signed(data: bytes, signature: bytes, key: Ed25519PublicKey) -> bool:
    """Whether the signature is the key's, of this data."""
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError([f"{path}: {error.strerror}; expected a key in PEM"]) from None
