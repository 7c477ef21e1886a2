"""Private servers, and what may happen to one: they are killed and stopped, so nobody shares them."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sublet.core.audit import Findings
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.migrations import migrate
from sublet.core.postgres import Postgres
from sublet.ledger import audit


@contextmanager
def private_server(*, now: datetime) -> Iterator[Postgres]:
    """Lend a migrated server, and at the end let the auditor find nothing in it."""
    folder = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    server = Postgres(folder / "postgres")
    try:
        server.start()
        with Database(server.url) as db:
            migrate(db, clock=SystemClock())
        yield server
        with Database(server.url) as db, db.transaction() as tx:
            findings = Findings()
            audit.audit(tx, findings, now=now)
        assert findings.differences == []
        assert findings.counts["money"]["transfers"] > 0
    finally:
        everybody(server, signal.SIGCONT)  # one that is stopped could not end
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def processes(server: Postgres) -> list[int]:
    """Return the server and all of its children: each is a process group of its own."""
    parent = server.process.pid
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return []
    return [parent, *map(int, children)]


def everybody(server: Postgres, sign: signal.Signals) -> None:
    for pid in processes(server):
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


def kill_server(server: Postgres) -> None:
    """The power button: every process at once."""
    everybody(server, signal.SIGKILL)
    server.process.wait()
    server.start()


def kill_postmaster(server: Postgres) -> None:
    """Its children notice and leave, in the middle of what they do."""
    server.process.kill()
    server.process.wait()
    server.start()


def kill_backends(server: Postgres) -> None:
    """The server then restarts itself: all connections end, and it recovers from its log."""
    for pid in processes(server)[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pause(server: Postgres) -> None:
    """Stop all of it in the middle of what it does, then let it go on."""
    everybody(server, signal.SIGSTOP)
    everybody(server, signal.SIGCONT)


def pause_and_kill(server: Postgres) -> None:
    """Nothing that was asked meanwhile is done, though it was sent."""
    everybody(server, signal.SIGSTOP)
    kill_server(server)
