"""Databases for a whole module: a fresh one for every test costs more than the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from psycopg.conninfo import make_conninfo

from sublet.core.db import Database, Tx


@contextmanager
def fresh(postgres_url: str, template: str | None = None) -> Iterator[Database]:
    """Make a database, a copy of `template` or empty, and drop it afterwards.

    Nothing here dies with its server, so nothing waits for the disk.
    """
    name = f"test_{uuid4().hex}"
    copy = "" if template is None else f' TEMPLATE "{template}"'
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"{copy}'.encode())
        options = "-csynchronous_commit=off"
        with Database(make_conninfo(postgres_url, dbname=name, options=options)) as db:
            yield db
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


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
