"""Postgres: named queries, and one transaction at a time."""

import copy
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from types import FrameType, TracebackType
from typing import Any, Final, LiteralString, Self, cast

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from sublet.core import failpoint
from sublet.core.errors import Unavailable

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)

Tx = Connection[DictRow]


def load_queries(package: str, file: str = "queries.sql") -> dict[str, LiteralString]:
    """Read a room's `queries.sql` into {name: text}. Comments stay with their query."""
    text = (resources.files(package) / file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    # The text ships with the package, so it is as trusted as the code beside it.
    return {
        name: cast("LiteralString", body)
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


class Database:
    """A pool that hands out transactions: commit on leaving, roll back on error."""

    def __init__(
        self, url: str, *, connections: int = 8, wait_seconds: float = 5.0, name: str = "sublet"
    ) -> None:
        self._check: Callable[[Tx], None] | None = None
        self._pool: ConnectionPool[Tx] = ConnectionPool(
            url,
            connection_class=cast("type[Tx]", Connection),
            kwargs={"row_factory": dict_row, "connect_timeout": 5, "application_name": name},
            min_size=1,
            max_size=connections,
            timeout=wait_seconds,
            # A server that was restarted leaves dead connections behind: look before lending.
            check=ConnectionPool.check_connection,
            reconnect_timeout=0,
            open=False,
        )

    def __enter__(self) -> Self:
        self._pool.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.close()

    def checked(self, check: Callable[[Tx], None]) -> "Database":
        """Return this database with `check` as the first thing in every transaction.

        It shares the connections, and must not be used once this one is closed.
        """
        other = copy.copy(self)
        other._check = check  # noqa: SLF001 -- its own, a line old
        return other

    @contextmanager
    def transaction(self, name: str | None = None) -> Iterator[Tx]:
        """Lend a connection inside one transaction.

        Args:
            name: what its failpoints are called after, where the function that opens it does
                too many things to be.

        Raises:
            Unavailable: Postgres did not answer, or went away in the middle. Whether a
                commit took effect is then unknown: repeat the step, with the same ids.
        """
        if failpoint.armed() and name is None:
            name = _opener()
        try:
            with self._pool.connection() as connection:
                if self._check is not None:
                    self._check(connection)
                yield connection
                # Here, not at the end of the block, which passes over one that was cut off.
                if failpoint.armed() and _writes(connection):
                    _commit_between_failpoints(connection, str(name))
                else:
                    connection.commit()
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            raise Unavailable(f"the database did not answer: {error}") from error


def one(tx: Tx, query: LiteralString, row: dict[str, Any]) -> dict[str, Any] | None:
    """Run `query` and return its only row, or None."""
    return tx.execute(query, row).fetchone()


# ── what a test may do to a transaction ──────────────────────────────────────────────────


def _opener() -> str:
    """Return the function that wrote `with db.transaction()`."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 -- only while a test has armed us
    while frame is not None and frame.f_code.co_name in {"transaction", "__enter__"}:
        frame = frame.f_back
    assert frame is not None
    module = str(frame.f_globals["__name__"]).removeprefix("sublet.")
    return f"{module}.{frame.f_code.co_name}"


def _writes(connection: Tx) -> bool:
    """Say whether there is anything to commit."""
    if connection.info.transaction_status is not TransactionStatus.INTRANS:
        return False
    row = connection.execute("SELECT pg_current_xact_id_if_assigned() AS id").fetchone()
    return row is not None and row["id"] is not None


def _commit_between_failpoints(connection: Tx, name: str) -> None:
    def cut() -> None:
        end = socket.socket(fileno=os.dup(connection.fileno()))
        end.shutdown(socket.SHUT_RDWR)
        end.close()

    def cut_and_miss_the_answer() -> None:
        cut()
        raise psycopg.OperationalError("the connection was cut after COMMIT, by a failpoint")

    failpoint.failpoint(f"{name}.before_commit", drop=cut)
    connection.commit()
    failpoint.failpoint(f"{name}.after_commit", drop=cut_and_miss_the_answer)
