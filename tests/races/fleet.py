"""Several gateway processes on one database, which may be killed and started again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.stage import Gateway, Stage, eventually

from sublet.app.audit import audit
from sublet.core.clock import SystemClock

UNLIMITED = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}


@dataclass(slots=True)
class Fleet:
    stage: Stage
    gateways: dict[str, Gateway] = field(default_factory=dict)

    def start(self, name: str) -> Gateway:
        gateway = self.stage.start(name=name, **UNLIMITED)
        self.gateways[name] = gateway
        return gateway

    def kill(self, name: str) -> None:
        """Kill -9 it, and wait until PostgreSQL has done the last that it was asked."""
        self.gateways[name].kill()
        eventually(lambda: not self._connections(name))

    def _connections(self, name: str) -> int:
        return self.number(
            "SELECT count(*) AS n FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = %s",
            f"sublet gateway {name}",
        )

    def holds(self, name: str) -> int:
        return self.number(
            "SELECT count(*) AS n FROM open_hold WHERE holder LIKE %s", f"gateway:{name}:%"
        )

    def number(self, query: Any, *given: object) -> int:
        with self.stage.db.transaction() as tx:
            row = tx.execute(query, given).fetchone()
        assert row is not None
        return int(row["n"])


@contextmanager
def fleet(stage: Stage, *names: str) -> Iterator[Fleet]:
    started = Fleet(stage)
    try:
        for name in names:
            started.start(name)
        yield started
    finally:
        for gateway in started.gateways.values():
            if gateway.process.poll() is None:
                gateway.kill()


def check_everything(stage: Stage) -> None:
    """Nothing is held, and the auditor finds no difference, in any room."""
    stage.check_books()
    assert audit(stage.db, clock=SystemClock()).differences == []
