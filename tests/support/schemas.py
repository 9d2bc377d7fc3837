"""own_schema: an empty place in a PostgreSQL database, for one test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


@contextmanager
def own_schema(url: str) -> Iterator[str]:
    """The URL of a new schema in the database of ``url``; dropped at the end with all that is in it."""
    schema = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{schema}"
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")
