"""Databases for a whole module: a fresh one for every test costs more than the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg.conninfo import make_conninfo

from sublet.core.db import Database, Tx


@contextmanager
def fresh_url(postgres_url: str, template: str | None = None, **more: str) -> Iterator[str]:
    """Make a database, a copy of `template` or empty, and drop it afterwards."""
    name = f"test_{uuid4().hex}"
    copy = "" if template is None else f' TEMPLATE "{template}"'
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"{copy}'.encode())
        yield make_conninfo(postgres_url, dbname=name, **more)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextmanager
def fresh(postgres_url: str, template: str | None = None) -> Iterator[Database]:
    """Make a database as `fresh_url` does, and connect to it.

    Nothing here dies with its server, so nothing waits for the disk.
    """
    with (
        fresh_url(postgres_url, template, options="-csynchronous_commit=off") as url,
        Database(url) as db,
    ):
        yield db


class Undone(Exception):
    """Takes every change of a transaction back."""


@contextmanager
def undone(db: Database) -> Iterator[Tx]:
    """Lend a transaction that will never have been."""
    try:
        with db.transaction() as tx:
            yield tx
            raise Undone
    except Undone:
        pass
