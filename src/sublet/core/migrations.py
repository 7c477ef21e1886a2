"""Bringing the database's schema forward: numbered files, once each, never back."""

import contextlib
import re
import time
from importlib import resources
from typing import Final

import psycopg

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured, Unavailable

_FILE: Final = re.compile(r"^(\d{4})_\w+\.sql$")
# Any fixed number will do, as long as nothing else in this database locks it.
_LOCK: Final = 7_355_608_001


def available() -> dict[int, str]:
    """Return {number: SQL} of every migration in this package, in order."""
    files = {
        int(match[1]): file.read_text(encoding="utf-8")
        for file in resources.files("sublet.schema").iterdir()
        if (match := _FILE.match(file.name))
    }
    return dict(sorted(files.items()))


def migrate(db: Database, *, clock: Clock) -> int:
    """Apply what is missing, one transaction for all of it, one migrator at a time.

    Returns:
        the number of the newest migration.

    Raises:
        Misconfigured: the database was written by a newer Sublet.
        Unavailable: the database did not answer.
    """
    migrations = available()
    newest = max(migrations)
    with db.transaction() as tx:
        tx.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        tx.execute(
            "CREATE TABLE IF NOT EXISTS migration"
            " (number integer PRIMARY KEY, applied_at timestamptz NOT NULL)"
        )
        rows = tx.execute("SELECT number FROM migration").fetchall()
        applied = {row["number"] for row in rows}
        if unknown := applied - set(migrations):
            raise Misconfigured(
                f"the database is at schema {max(unknown)}, this Sublet knows up to {newest}:"
                " it was used by a newer Sublet; install that version or newer"
            )
        for number, text in migrations.items():
            if number not in applied:
                # The text ships with the package, so it is as trusted as the code.
                tx.execute(text.encode())
                tx.execute("INSERT INTO migration VALUES (%s, %s)", [number, clock.now()])
    return newest


def wait_until_migrated(url: str, *, wait_seconds: float) -> None:
    """Wait until the control plane has brought the schema to what this Sublet needs.

    Raises:
        Unavailable: the time is up.
    """
    newest = max(available())
    until = time.monotonic() + wait_seconds
    while True:
        found: int | None = None
        # Not through a pool: one that finds nobody backs off for seconds.
        with (
            contextlib.suppress(psycopg.OperationalError, psycopg.errors.UndefinedTable),
            psycopg.connect(url, connect_timeout=5) as connection,
        ):
            row = connection.execute("SELECT max(number) FROM migration").fetchone()
            found = None if row is None else row[0]
        if found is not None and found >= newest:
            return
        if time.monotonic() > until:
            raise Unavailable(
                f"the database has schema {found}, {newest} is needed: start the control plane,"
                " which brings it forward"
            )
        time.sleep(0.05)
