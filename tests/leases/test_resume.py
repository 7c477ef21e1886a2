"""Who comes back next: in order within a pool, and only as many as have room."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from tests.leases.make import NOON, lease_in

from sublet.leases.lease import EndReason, Lease, LeaseId, State
from sublet.leases.resume import next_back, time_left


def paused(number: int, gpus: int, *, pool: str = "h200", over: bool = False) -> Lease:
    one = replace(lease_in(State.ENDED), end_reason=EndReason.RECLAIMED)
    ran = one.max_duration if over else timedelta(seconds=1)
    return replace(
        one, id=LeaseId(UUID(int=number)), gpus=gpus, pool=pool, resumable=True, running_at=NOON,
        stopped_at=NOON + ran,
    )  # fmt: skip


def numbers(leases: list[Lease]) -> list[int]:
    return [one.id.int for one in leases]


def test_a_small_one_does_not_overtake_a_large_one_of_its_pool() -> None:
    waiting = [paused(1, 2), paused(2, 8), paused(3, 1), paused(4, 1, pool="a100")]
    room = {"h200": 8, "a100": 1}
    assert numbers(next_back(waiting, room, most=9)) == [1, 4]
    assert numbers(next_back(waiting, {"h200": 11, "a100": 0}, most=9)) == [1, 2, 3]
    assert numbers(next_back(waiting, {"h200": 11, "a100": 1}, most=2)) == [1, 2]


def test_who_may_not_come_back_keeps_nobody_out() -> None:
    waiting = [paused(1, 8), paused(2, 8)]
    assert numbers(next_back(waiting, {"h200": 8}, most=9)) == [1]
    assert numbers(next_back(waiting, {"h200": 8}, most=9, stay={waiting[0].id})) == [2]


def test_one_with_no_time_left_needs_no_room() -> None:
    waiting = [paused(1, 8, over=True), paused(2, 8)]
    assert time_left(waiting[0]) == timedelta(0)
    assert numbers(next_back(waiting, {"h200": 8}, most=9)) == [1, 2]


@given(
    st.lists(st.tuples(st.integers(1, 8), st.sampled_from(["h200", "a100"])), max_size=12),
    st.integers(0, 20), st.integers(0, 20), st.integers(1, 12),
)  # fmt: skip
def test_of_each_pool_the_first_come_back_and_never_more_than_fit(
    asked: list[tuple[int, str]], h200: int, a100: int, most: int
) -> None:
    waiting = [paused(number, gpus, pool=pool) for number, (gpus, pool) in enumerate(asked)]
    room = {"h200": h200, "a100": a100}
    chosen = next_back(waiting, room, most=most)
    assert len(chosen) <= most
    for pool, gpus in room.items():
        mine = [one for one in waiting if one.pool == pool]
        back = [one for one in chosen if one.pool == pool]
        assert back == mine[: len(back)], "the first of them"
        assert sum(one.gpus for one in back) <= gpus
        if len(chosen) < most and len(back) < len(mine):
            assert sum(one.gpus for one in mine[: len(back) + 1]) > gpus, "the next does not fit"
