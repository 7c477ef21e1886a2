"""Who gives way when internal jobs need the GPUs."""

from dataclasses import replace
from datetime import timedelta
from random import Random
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from tests.leases.make import NOON, SECOND, lease_in

from sublet.leases.lease import HOLDING, EndReason, Lease, LeaseId, State
from sublet.leases.reclaim import choose
from sublet.market.price import Tier

NOW = NOON + 3600 * SECOND
CAN_GO = {State.ADMITTED, State.PROVISIONING, State.RUNNING}


@st.composite
def fleets(draw: st.DrawFn) -> list[Lease]:
    found = draw(
        st.lists(
            st.tuples(
                st.sampled_from(State),
                st.sampled_from([Tier.INTERRUPTIBLE, Tier.ON_DEMAND]),
                st.integers(1, 8),
                st.integers(0, 3000),
                st.sampled_from([60, 1200, 86_400]),
                st.booleans(),
            ),
            max_size=10,
        )
    )
    leases = []
    for number, (state, tier, gpus, started, firm_seconds, asked) in enumerate(found):
        firm = timedelta(seconds=firm_seconds) if tier is Tier.ON_DEMAND else timedelta(0)
        lease = lease_in(state, id=LeaseId(UUID(int=number)), tier=tier, gpus=gpus, firm=firm)
        if lease.running_at is not None:
            lease = replace(lease, running_at=NOON + started * SECOND)
        if asked and state in CAN_GO:
            lease = replace(lease, release_asked=EndReason.RELEASED)
        leases.append(lease)
    return leases


def can_go(leases: list[Lease]) -> list[Lease]:
    return [lease for lease in leases if lease.state in CAN_GO and lease.release_asked is None]


def total(leases: list[Lease]) -> int:
    return sum(lease.gpus for lease in leases)


@given(fleets(), st.integers(1, 40))
def test_enough_goes_and_nothing_that_need_not(leases: list[Lease], gpus: int) -> None:
    chosen = choose(leases, gpus=gpus, now=NOW)
    assert total(chosen) >= min(gpus, total(can_go(leases)))
    assert all(lease in can_go(leases) for lease in chosen)
    assert len({lease.id for lease in chosen}) == len(chosen)
    if total(chosen) >= gpus:
        assert all(total(chosen) - lease.gpus < gpus for lease in chosen), "one of them may stay"


@given(fleets(), st.integers(1, 40))
def test_a_firm_lease_goes_only_when_the_interruptible_ones_are_not_enough(
    leases: list[Lease], gpus: int
) -> None:
    soft = [lease for lease in can_go(leases) if not lease.is_firm(NOW)]
    chosen = choose(leases, gpus=gpus, now=NOW)
    if any(lease.is_firm(NOW) for lease in chosen):
        assert total(soft) < gpus


@given(fleets(), st.integers(1, 40), st.integers(0, 9))
def test_the_order_in_which_leases_are_listed_changes_nothing(
    leases: list[Lease], gpus: int, seed: int
) -> None:
    shuffled = list(leases)
    Random(seed).shuffle(shuffled)
    assert choose(shuffled, gpus=gpus, now=NOW) == choose(leases, gpus=gpus, now=NOW)


def test_among_equals_the_youngest_goes() -> None:
    old, young = (
        replace(lease_in(State.RUNNING, id=LeaseId(UUID(int=n))), running_at=NOON + n * SECOND)
        for n in (1, 2)
    )
    assert choose([old, young], gpus=1, now=NOW) == [young]


def test_one_large_lease_does_not_take_small_ones_with_it() -> None:
    small = [lease_in(State.ADMITTED, id=LeaseId(UUID(int=n)), gpus=1) for n in range(3)]
    large = lease_in(State.RUNNING, id=LeaseId(UUID(int=9)), gpus=8)
    assert choose([*small, large], gpus=8, now=NOW) == [large]


def test_what_leaves_already_is_not_told_twice() -> None:
    leaving = [lease_in(State.DRAINING), lease_in(State.RUNNING, release_asked=EndReason.EXPIRED)]
    assert choose(leaving, gpus=8, now=NOW) == []
    assert {lease.state for lease in leaving} <= HOLDING


def test_an_on_demand_lease_is_firm_for_its_minimum_run_and_then_interruptible() -> None:
    firm = timedelta(minutes=10)
    waiting = lease_in(State.PROVISIONING, tier=Tier.ON_DEMAND, firm=firm)
    lease = lease_in(State.RUNNING, tier=Tier.ON_DEMAND, firm=firm)
    assert lease.running_at is not None and lease.firm_until == lease.running_at + firm
    assert waiting.is_firm(NOW) and waiting.firm_until is None
    assert lease.is_firm(lease.firm_until - SECOND) and not lease.is_firm(lease.firm_until)
    assert not lease_in(State.RUNNING, firm=firm).is_firm(NOON)
    before = lease_in(State.RUNNING, tier=Tier.ON_DEMAND, firm=None)
    assert before.is_firm(NOW + timedelta(days=9)) and before.firm_until is None
