"""Demand over time: one sample a slot, the worst of it, whoever looked and however often."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from sublet.core.db import Tx
from sublet.engine.port import InternalJob
from sublet.fleet import store
from sublet.fleet.demand import SLOT, Sample, Sampler, slot_of
from sublet.fleet.pool import Demand, demand_by_pool
from sublet.fleet.store import Samples

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def jobs(running: int, pending: int) -> list[InternalJob]:
    def job(number: int, gpus: int, started: datetime | None) -> InternalJob:
        return InternalJob(
            id=UUID(int=number), name="j", gpu_model="h200", gpus=gpus, submitted_at=NOON,
            started_at=started,
        )  # fmt: skip

    return [job(1, running, NOON), job(2, pending, None)]


def demands(running: int, pending: int) -> dict[str, Demand]:
    return demand_by_pool(jobs(running, pending))


def test_a_slot_starts_at_a_multiple_of_five_minutes() -> None:
    assert slot_of(NOON + 299 * SECOND) == NOON
    assert slot_of(NOON + 300 * SECOND) == NOON + SLOT


def test_samples_are_kept_once_a_minute_and_when_their_slot_is_over() -> None:
    sampler = Sampler()
    kept = {
        second: sampler.look({"h200": 8}, demands(second % 7, 0), now=NOON + second * SECOND)
        for second in range(0, 360, 10)
    }
    assert [second for second, samples in kept.items() if samples] == [0, 60, 120, 180, 240, 300]
    over, begun = kept[300]
    assert (over.slot, begun.slot) == (NOON, NOON + SLOT)
    assert over == Sample(pool="h200", slot=NOON, gpus=8, running=6, pending=0)


@given(
    st.lists(
        st.tuples(st.integers(0, 1200), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
    )
)
def test_a_sample_is_the_worst_of_all_looks_at_its_slot(
    looks: list[tuple[int, int, int, int]],
) -> None:
    sampler = Sampler()
    kept: dict[datetime, Sample] = {}
    for second, gpus, running, pending in [*sorted(looks), (9_000, 0, 0, 0)]:
        now = NOON + second * SECOND
        for sample in sampler.look({"h200": gpus}, demands(running, pending), now=now):
            before = kept.get(sample.slot)
            kept[sample.slot] = sample if before is None else before.joined(sample)
    for slot in {slot_of(NOON + second * SECOND) for second, _, _, _ in looks}:
        seen = [look for look in looks if slot_of(NOON + look[0] * SECOND) == slot]
        assert kept[slot] == Sample(
            pool="h200", slot=slot, gpus=min(look[1] for look in seen),
            running=max(look[2] for look in seen), pending=max(look[3] for look in seen),
        )  # fmt: skip


def test_samples_of_one_slot_are_joined_in_the_store_and_old_ones_forgotten(tx: Tx) -> None:
    store.observe_pools(tx, {"h200": 8, "cpu": 2}, notice_seconds=10, now=NOON)
    first = Sample(pool="h200", slot=NOON, gpus=8, running=3, pending=0)
    again = Sample(pool="h200", slot=NOON, gpus=7, running=1, pending=2)
    other = Sample(pool="cpu", slot=NOON, gpus=2, running=0, pending=0)
    later = Sample(pool="h200", slot=NOON + 3 * SLOT, gpus=8, running=0, pending=0)
    store.keep_samples(tx, [first, other])
    store.keep_samples(tx, [later, again])
    at = int(NOON.timestamp())
    assert store.list_samples(tx, since=NOON) == {
        "cpu": Samples(slots=[at], gpus=[2], running=[0], pending=[0]),
        "h200": Samples(slots=[at, at + 900], gpus=[7, 8], running=[3, 0], pending=[2, 0]),
    }
    assert store.forget_samples(tx, before=NOON + SLOT) == 2
    assert [samples.slots for samples in store.list_samples(tx, since=NOON).values()] == [
        [at + 900]
    ]
