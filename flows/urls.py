"""URLs of the user's: whether they hold a secret that files and logs would keep."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit


def has_password(url: str) -> bool:
    """Whether ``url`` holds a password, before its host or in its query.

    Databases take any character but @ in a password, also such as end a host elsewhere.

    Raises:
        ValueError: it is no URL.
    """
    parts = urlsplit(url)
    if parts.password or any(re.search("password|pwd", key.lower()) for key in parse_qs(parts.query)):
        return True
    return not parts.scheme.startswith("http") and re.match(r"[\w+.-]+://[^@/:]*:[^@]+@", url) is not None
