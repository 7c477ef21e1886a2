"""Pools as the engine shows them, and internal jobs as the record keeps them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import Rate
from sublet.engine.port import InternalJob, Node
from sublet.fleet import store
from sublet.fleet.pool import (
    LONGEST_NOTICE_SECONDS,
    Demand,
    Policy,
    Pool,
    QuietHours,
    demand_by_pool,
    demand_of,
    gpus_by_pool,
    parse_quiet,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
JOB = InternalJob(
    id=UUID(int=1), name="training", gpu_model="h200", gpus=4, submitted_at=NOON
)  # fmt: skip
RUNNING = replace(JOB, started_at=NOON + MINUTE)
ENDED = replace(RUNNING, exited_at=NOON + 5 * MINUTE, exit_code=0)
CANCELLED = replace(JOB, exited_at=NOON + MINUTE, cancelled=True)


@given(st.lists(st.tuples(st.sampled_from(["h200", "b200", "cpu"]), st.integers(0, 8))))
def test_every_gpu_is_in_one_pool(found: list[tuple[str, int]]) -> None:
    nodes = [
        Node(name=str(number), gpu_model=model, gpus=gpus, memory_bytes=1)
        for number, (model, gpus) in enumerate(found)
    ]
    pools = gpus_by_pool(nodes)
    assert sum(pools.values()) == sum(gpus for _, gpus in found)
    assert set(pools) == {model for model, _ in found}


@pytest.mark.parametrize(
    ("jobs", "demand"),
    [
        ([], Demand(running=0, pending=0)),
        ([JOB], Demand(running=0, pending=4)),
        ([JOB, RUNNING, RUNNING], Demand(running=8, pending=4)),
        ([ENDED, CANCELLED], Demand(running=0, pending=0)),
        ([replace(JOB, gpu_model="b200")], Demand(running=0, pending=0)),
    ],
)
def test_what_internal_jobs_hold_and_wait_for(jobs: list[InternalJob], demand: Demand) -> None:
    assert demand_of(jobs, "h200") == demand
    assert demand_by_pool(jobs).get("h200", Demand(running=0, pending=0)) == demand


def test_a_pool_is_recorded_when_it_changes_and_only_then(tx: Tx) -> None:
    for minute, gpus in enumerate([{"h200": 8}, {"h200": 8}, {"h200": 7, "cpu": 2}, {}]):
        store.observe_pools(tx, gpus, notice_seconds=10, now=NOON + minute * MINUTE)
    events = [(row["pool"], row["gpus"], row["happened_at"]) for row in store.list_pool_events(tx)]
    pools = {pool.name: pool.gpus for pool in store.list_pools(tx)}
    assert events == [
        ("cpu", 2, NOON + 2 * MINUTE),
        ("cpu", 0, NOON + 3 * MINUTE),
        ("h200", 8, NOON),
        ("h200", 7, NOON + 2 * MINUTE),
        ("h200", 0, NOON + 3 * MINUTE),
    ]
    assert pools == {"cpu": 0, "h200": 0}, "a pool that is gone has none"


def test_how_large_a_pools_nodes_are_is_seen_and_stays_known_while_none_is_up(tx: Tx) -> None:
    seen = [({"h200": 8}, {"h200": 8}), ({"h200": 0}, {}), ({"h200": 8}, {"h200": 4})]
    for (gpus, node_gpus), known in zip(seen, (8, 8, 4), strict=True):
        store.observe_pools(tx, gpus, notice_seconds=10, now=NOON, node_gpus=node_gpus)
        assert [pool.node_gpus for pool in store.list_pools(tx)] == [known]


def test_a_policy_is_the_operators_and_stays(tx: Tx) -> None:
    store.observe_pools(tx, {"h200": 8}, notice_seconds=10, now=NOON)
    policy = Policy(
        notice_seconds=60, lendable=False, lending_limit=4, reserve=1, firm_seconds=7200,
        firm_confidence=0.95, credit_percent=50, floor=Rate(nanos=1_500_000_000, per=3600),
        quiet=parse_quiet("22:00-06:30"), exclusive=True,
    )  # fmt: skip
    assert store.set_policy(tx, "h200", policy, now=NOON).policy == policy
    store.observe_pools(tx, {"h200": 6}, notice_seconds=10, now=NOON + MINUTE)
    assert store.list_pools(tx) == [Pool(name="h200", gpus=6, policy=policy)]
    assert [row["notice_seconds"] for row in store.list_pool_events(tx)] == [10, 60, 60]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "b200"}, NotFound),
        ({"notice_seconds": -1}, Invalid),
        ({"notice_seconds": LONGEST_NOTICE_SECONDS + 1}, Invalid),
        ({"lending_limit": -1}, Invalid),
        ({"reserve": -1}, Invalid),
        ({"firm_seconds": 59}, Invalid),
        ({"firm_seconds": 86_401}, Invalid),
        ({"firm_confidence": 0.4}, Invalid),
        ({"firm_confidence": 1.0}, Invalid),
        ({"credit_percent": -1}, Invalid),
        ({"floor": Rate(nanos=0, per=3600)}, Invalid),
        ({"quiet": QuietHours(start=60, end=60)}, Invalid),
    ],
)
def test_a_policy_that_cannot_be_is_refused(
    tx: Tx, changes: dict[str, object], error: type[Exception]
) -> None:
    store.observe_pools(tx, {"h200": 8}, notice_seconds=10, now=NOON)
    name = changes.pop("name", "h200")
    with pytest.raises(error):
        store.set_policy(tx, str(name), replace(Policy(notice_seconds=10), **changes), now=NOON)


@pytest.mark.parametrize(
    ("quiet", "at", "hours"),
    [
        ("22:00-06:30", "21:00", 1.0),
        ("22:00-06:30", "22:00", 0.0),
        ("22:00-06:30", "06:29", 0.0),
        ("22:00-06:30", "06:30", 15.5),
        ("06:00-22:00", "23:00", 7.0),
        ("06:00-22:00", "22:00", 8.0),
    ],
)
def test_quiet_hours_may_reach_over_midnight(quiet: str, at: str, hours: float) -> None:
    instant = datetime.fromisoformat(f"2026-01-01T{at}:00+00:00")
    found = parse_quiet(quiet)
    assert found.wait(instant) == timedelta(hours=hours)
    assert str(found) == quiet
    assert found.meet(instant, instant + timedelta(hours=hours, seconds=1))
    assert not hours or not found.meet(instant, instant + timedelta(hours=hours))


@pytest.mark.parametrize("text", ["", "22-6", "24:00-06:00", "22:60-06:00", "22:00-06:00 "])
def test_what_is_no_quiet_hours_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="two times"):
        parse_quiet(text)


def test_looking_at_the_queue_again_and_again_records_each_change_once(tx: Tx) -> None:
    store.observe_pools(tx, {"h200": 8}, notice_seconds=10, now=NOON)
    for jobs in ([JOB], [JOB], [RUNNING], [RUNNING], [ENDED], [ENDED]):
        store.record_internal_jobs(tx, jobs, now=NOON + 9 * MINUTE)
    (span,) = store.list_internal_spans(tx)
    rows = tx.execute("SELECT event FROM internal_job_event").fetchall()
    assert len(rows) == 3
    assert (span.job_id, span.pool, span.gpus) == (JOB.id, "h200", 4)
    assert (span.submitted_at, span.started_at, span.ended_at) == (
        NOON,
        ENDED.started_at,
        ENDED.exited_at,
    )


def test_a_job_that_was_given_something_else_than_it_wanted_is_one_job(tx: Tx) -> None:
    """Such as a gang that is first seen with its GPUs when some of its nodes have finished."""
    store.observe_pools(tx, {"h200": 8}, notice_seconds=10, now=NOON)
    for job in (JOB, replace(RUNNING, gpus=1, name="renamed"), replace(ENDED, gpus=1)):
        store.record_internal_jobs(tx, [job], now=NOON + 9 * MINUTE)
    (span,) = store.list_internal_spans(tx)
    assert (span.gpus, span.wanted, span.name) == (1, 4, ENDED.name)
    assert (span.submitted_at, span.started_at) == (NOON, ENDED.started_at)
    (shown,) = store.list_jobs_at(tx, "h200", NOON + MINUTE)
    assert (shown["gpus"], shown["started_at"]) == (1, ENDED.started_at)


def test_a_job_first_seen_when_it_was_over_is_recorded_whole(tx: Tx) -> None:
    store.observe_pools(tx, {"h200": 8}, notice_seconds=10, now=NOON)
    cancelled = replace(CANCELLED, id=UUID(int=2))
    store.record_internal_jobs(tx, [ENDED, cancelled], now=NOON + 9 * MINUTE)
    spans = {span.job_id: span for span in store.list_internal_spans(tx)}
    assert spans[ENDED.id].ended_at == ENDED.exited_at
    assert spans[cancelled.id].started_at is None
