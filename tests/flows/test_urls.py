from __future__ import annotations

import pytest

from flows.urls import has_password


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://curate:s3cr#t@db/ledger",
        "postgresql://u:pa/ss@h/db",
        "postgresql://u:pa?ss@h/db",
        "postgresql://h/db?PASSWORD=x",
        "postgresql://h/db?sslpassword=x",
        "http://u:p@h:5000",
    ],
)
def test_a_password_is_seen_wherever_it_stands(url: str) -> None:
    assert has_password(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user@host/db",
        "http://host:5000",
        "http://host:5000/x@y",
        "http://[::1]:5000",
        "sqlite:////a:b@c",
        "/tmp/a:b@c",
        "file:///a:b@c",
        "databricks://scope:key",
        "mlruns",
    ],
)
def test_what_is_no_password_is_no_secret(url: str) -> None:
    assert not has_password(url)
