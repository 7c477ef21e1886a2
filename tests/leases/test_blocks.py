"""The arithmetic of paying a minute at a time."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.leases.make import NOON, SECOND, lease_in

from sublet.core.money import Money, Rate
from sublet.leases.blocks import BLOCK_SECONDS, block_seconds, paid_until, used_seconds
from sublet.leases.lease import Lease, State

SOLD = st.integers(1, 30 * 24 * 3600)
RATES = st.builds(
    lambda nanos, per: Rate(nanos=nanos, per=per), st.integers(1, 10**15), st.integers(1, 10**7)
)


def sold(seconds: int, gpus: int = 1) -> Lease:
    return lease_in(State.RUNNING, max_duration=seconds * SECOND, gpus=gpus)


def count(seconds: int) -> int:
    return -(-seconds // BLOCK_SECONDS)


@given(SOLD)
def test_blocks_add_up_to_what_was_sold(seconds: int) -> None:
    lease = sold(seconds)
    number = count(seconds)
    edges = {0, 1, number - 1, number, number + 1}
    assert all(0 <= block_seconds(lease, block) <= BLOCK_SECONDS for block in edges)
    assert block_seconds(lease, number - 1) > 0
    assert block_seconds(lease, number) == 0
    assert (number - 1) * BLOCK_SECONDS + block_seconds(lease, number - 1) == seconds


@given(st.integers(1, 3000), st.integers(0, 60))
def test_each_block_pays_for_more_until_all_is_paid(seconds: int, blocks: int) -> None:
    lease = sold(seconds)
    until = [paid_until(lease, blocks=number, running_at=NOON) for number in range(blocks + 2)]
    assert until == sorted(until)
    assert until[0] == NOON
    assert until[-1] == NOON + min(seconds, (blocks + 1) * BLOCK_SECONDS) * SECOND


@given(st.integers(1, 3000), st.integers(0, 3_000_000))
def test_cutting_a_lease_into_blocks_rounds_none_of_them(seconds: int, used_ms: int) -> None:
    lease = sold(seconds)
    assert lease.running_at is not None
    used = min(timedelta(milliseconds=used_ms), seconds * SECOND)
    stopped = replace(lease, stopped_at=lease.running_at + used)
    blocks = range(count(seconds))
    late = lease.running_at + 10**6 * SECOND
    billed = [used_seconds(stopped, block, until=late) for block in blocks]
    assert sum(billed) == used // SECOND
    assert all(0 <= n <= block_seconds(lease, block) for block, n in enumerate(billed))
    # What is billed while it still runs is what is billed of the same instant afterwards.
    running = [used_seconds(lease, block, until=stopped.stopped_at or late) for block in blocks]
    assert running == billed


@given(st.integers(1, 300), st.integers(1, 1024), RATES, st.integers(0, 60))
def test_a_hold_covers_whatever_its_block_can_cost(
    seconds: int, gpus: int, rate: Rate, used: int
) -> None:
    lease = sold(seconds, gpus)
    for block in range(count(seconds)):
        covers = block_seconds(lease, block)
        held = rate.charge_most(gpus * covers)
        assert held.nanos >= rate.charge(gpus * min(used, covers)).nanos
        assert held != Money(0), "a free block cannot be held"


def test_nothing_is_used_before_it_runs() -> None:
    assert used_seconds(lease_in(State.PROVISIONING), 0, until=NOON + 99 * SECOND) == 0
    lease = lease_in(State.RUNNING)
    assert used_seconds(lease, 0, until=NOON - 99 * SECOND) == 0
