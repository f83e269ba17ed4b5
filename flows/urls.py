"""URLs of the user's: whether they hold a secret that files and logs would keep."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit


def has_password(url: str) -> bool:
    """Whether ``url`` holds a password, before its host or in its query.

    Raises:
        ValueError: it is no URL.
    """
    parts = urlsplit(url)
    return parts.password is not None or "password" in parse_qs(parts.query)
