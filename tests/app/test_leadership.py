"""Who leads, where nobody can be killed: on two machines, only the database fences."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from tests.core.databases import fresh_url

from sublet.app import leadership as module
from sublet.app.leadership import Leadership
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.process import wait_for

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLUSTER = UUID(int=1)  # an engine that both of them reach


MADE: list[Leadership] = []


@pytest.fixture
def url(postgres_url: str, template: str) -> Iterator[str]:
    with fresh_url(postgres_url, template) as made:
        yield made
        while MADE:
            MADE.pop().close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.01)


def leadership(url: str, *, engine: UUID = CLUSTER) -> Leadership:
    made = Leadership(url, engine=engine, place=f"host-{engine.int}", clock=ManualClock(NOON))
    MADE.append(made)
    return made


def test_one_leads_and_the_other_waits_until_it_is_gone(url: str) -> None:
    first, second = leadership(url), leadership(url)
    assert first.hold()
    assert not second.hold()
    # As long as its beats go on, whoever waits, waits.
    assert not wait_for(lambda: not first.hold() or second.hold(), wait_seconds=0.5)
    first.release()
    assert wait_for(second.hold, wait_seconds=5)
    assert second.epoch == first.epoch + 1
    second.release()


def test_what_a_sleeping_leader_had_begun_is_undone_and_what_it_begins_is_refused(
    url: str,
) -> None:
    first, second = leadership(url), leadership(url)
    with Database(url, name=first.name) as db:
        ours = db.checked(first.check)
        assert first.hold()
        with ours.transaction() as tx:
            tx.execute("CREATE TABLE done (what text)")
        step = ours.transaction()
        step.__enter__().execute("INSERT INTO done VALUES ('before it slept')")
        # It sleeps here, in the middle of a transaction, and somebody else takes over.
        assert wait_for(second.hold, wait_seconds=10)
        with pytest.raises(Unavailable):
            step.__exit__(None, None, None)
        with pytest.raises(Unavailable):
            first.hold()  # it learns that its connection is gone …
        assert not first.hold()  # … and then that somebody else leads
        with pytest.raises(Unavailable, match="another control plane leads"), ours.transaction():
            raise AssertionError
    with Database(url, name=second.name) as db, db.checked(second.check).transaction() as tx:
        assert tx.execute("SELECT * FROM done").fetchall() == []
    assert second.hold()
    second.release()


def test_of_two_who_wait_one_leads(url: str) -> None:
    asleep, *waiting = (leadership(url) for _ in range(3))
    assert asleep.hold()
    assert wait_for(lambda: any(one.hold() for one in waiting), wait_seconds=10)
    assert [one.hold() for one in waiting].count(True) == 1
    for one in (asleep, *waiting):
        one.release()


def test_another_engine_may_lead_once_nothing_can_run_on_the_first(url: str) -> None:
    first, other = leadership(url), leadership(url, engine=UUID(int=2))
    assert first.hold()
    first.release()
    with Database(url) as db, db.transaction() as tx:
        tx.execute(
            "SET session_replication_role = replica"
        )  # a lease needs neither tenant nor price
        tx.execute(
            "INSERT INTO lease (id, tenant_id, pool, gpus, tier, notice_seconds, price_id, workload,"
            " max_seconds, requested_at, state, since, version, paid_until) VALUES"
            " (%(id)s, %(id)s, 'cpu', 1, 'on_demand', 30, 1, '{}', 60, %(now)s, 'running', %(now)s,"
            " 4, %(paid)s)",
            {"id": UUID(int=9), "now": NOON, "paid": NOON + timedelta(seconds=60)},
        )
    with pytest.raises(Misconfigured, match="may run on host-1 until 2026-01-01T12:01:30"):
        wait_for(other.hold, wait_seconds=5)
    later = leadership(url, engine=UUID(int=2))
    later._clock = ManualClock(NOON + timedelta(seconds=91))
    assert wait_for(later.hold, wait_seconds=5)
    later.release()
