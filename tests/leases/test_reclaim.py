"""Who gives way when internal jobs need the GPUs."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from tests.leases.make import NOON, SECOND, lease_in

from sublet.core.money import Rate
from sublet.engine.port import InternalJob, Node
from sublet.fleet.pool import Policy, Pool, demand_by_pool, demand_of
from sublet.fleet.topology import Topology
from sublet.leases.lease import HOLDING, EndReason, Lease, LeaseId, State
from sublet.leases.reclaim import Losses, choose
from sublet.leases.service import reclaim_all
from sublet.market.price import Tier
from sublet.planner.surplus import Pressure, sellable_gpus

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


def soft(number: int, *, tenant: int = 2, started: int = 0, gpus: int = 1, **more: Any) -> Lease:
    lease = lease_in(
        State.RUNNING, id=LeaseId(UUID(int=number)), tenant_id=UUID(int=tenant), gpus=gpus
    )
    return replace(lease, running_at=NOON + started * SECOND, **more)


def test_who_saved_its_work_lately_goes_before_who_did_not() -> None:
    old, young = soft(1), soft(2, started=60)
    assert choose([old, young], gpus=1, now=NOW) == [young]
    saved = replace(old, checkpoint_at=NOW - 5 * SECOND)
    assert choose([saved, young], gpus=1, now=NOW) == [saved]


def test_tenants_take_turns() -> None:
    """One that always starts last must not always be the one that goes."""
    mine = [soft(number, tenant=1, started=3000) for number in range(1, 9)]
    others = [soft(10 * tenant, tenant=tenant) for tenant in range(2, 6)]
    chosen = choose([*mine, *others], gpus=5, now=NOW)
    assert Counter(lease.tenant_id.int for lease in chosen) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    lately = Losses(lately={UUID(int=1): 2, UUID(int=2): 1})
    chosen = choose([*mine, *others], gpus=4, now=NOW, losses=lately)
    assert {lease.tenant_id.int for lease in chosen} == {2, 3, 4, 5}


def test_of_promises_the_one_that_costs_least_is_broken() -> None:
    firm = {"tier": Tier.ON_DEMAND, "firm": timedelta(hours=2)}
    near, far = soft(1, started=0, **firm), soft(2, started=1800, **firm)
    assert choose([near, far], gpus=1, now=NOW) == [near], "less of its promise is left"
    dear = replace(near, price_id=7)
    losses = Losses(rates={1: Rate(nanos=1, per=1), 7: Rate(nanos=9, per=1)})
    assert choose([dear, far], gpus=1, now=NOW, losses=losses) == [far]
    modest = replace(dear, credit_percent=5)
    assert choose([modest, far], gpus=1, now=NOW, losses=losses) == [modest]


def test_tiers_give_way_in_order() -> None:
    until = NOW + timedelta(hours=1)
    contract = soft(1, tier=Tier.CONTRACT, until=until)
    reserved = soft(2, tier=Tier.RESERVED, until=until)
    firm = soft(3, tier=Tier.ON_DEMAND, firm=timedelta(days=1))
    over = soft(4, tier=Tier.ON_DEMAND, firm=SECOND)
    everyone = [contract, reserved, firm, over, soft(5)]
    order = [lease.id.int for gpus in range(1, 6)
             for lease in choose(everyone, gpus=gpus, now=NOW)[-1:]]  # fmt: skip
    assert set(order[:2]) == {4, 5} and order[2:] == [3, 2, 1]


def test_whole_nodes_go_before_fragments() -> None:
    whole = soft(1, gpus=8, checkpoint_at=NOW)
    fragment = soft(2, gpus=3, checkpoint_at=NOW)
    nodes = [Node(name=name, gpu_model="h200", gpus=8, memory_bytes=1) for name in "ab"]
    known = Losses(topology=Topology.of(nodes))
    assert choose([fragment, whole], gpus=3, now=NOW, losses=known) == [whole]
    # Eight GPUs that are half of each of two nodes free none.
    split = soft(0, gpus=8, checkpoint_at=NOW)
    known = replace(known, placed={split.id: ["a", "b"], whole.id: ["a"]})
    assert choose([split, whole], gpus=8, now=NOW, losses=known) == [whole]


def racks(*racks: str) -> list[Node]:
    """Return a node of eight GPUs for each name of a rack."""
    return [
        Node(name=f"n{number}", gpu_model="h200", gpus=8, memory_bytes=1, block=rack)
        for number, rack in enumerate(racks)
    ]


def test_victims_are_of_one_rack_where_one_can_give_enough() -> None:
    nodes = racks("left", "right", "left", "right", "right")
    leases = [soft(number, tenant=10 + number, gpus=8) for number in range(5)]
    losses = Losses(
        topology=Topology.of(nodes), placed={one.id: [f"n{one.id.int}"] for one in leases}
    )
    for gpus, rack in ((16, {0, 2}), (24, {1, 3, 4})):
        chosen = choose(leases, gpus=gpus, now=NOW, losses=losses)
        assert {lease.id.int for lease in chosen} == rack
    # Who lost twice as much work since its last checkpoint is not told to go for it.
    saved = [replace(one, checkpoint_at=NOW - timedelta(minutes=5 if one.id.int == 2 else 1))
             for one in leases]  # fmt: skip
    chosen = choose(saved, gpus=16, now=NOW, losses=losses)
    assert {lease.id.int for lease in chosen} == {1, 3}


def test_for_one_node_the_youngest_goes_wherever_it_is() -> None:
    # As Slurm's own preemption has it, which may choose at the same instant: not one for each.
    nodes = racks("left", "right", "right", "left")
    leases = [
        soft(number, gpus=8, checkpoint_at=NOW - timedelta(seconds=5 - number))
        for number in range(3)
    ]
    losses = Losses(
        topology=Topology.of(nodes), placed={one.id: [f"n{one.id.int}"] for one in leases}
    )
    assert choose(leases, gpus=8, now=NOW, losses=losses) == [leases[2]]


def test_a_whole_rack_goes_before_a_whole_node() -> None:
    nodes = racks("left", "left", "right", "right")
    rack = soft(1, gpus=16, checkpoint_at=NOW)
    node = soft(2, gpus=8, checkpoint_at=NOW)
    losses = Losses(topology=Topology.of(nodes), placed={rack.id: ["n0", "n1"], node.id: ["n2"]})
    assert choose([node, rack], gpus=8, now=NOW, losses=losses) == [rack]


@given(fleets(), st.integers(1, 40), st.lists(st.sampled_from("abc"), min_size=10, max_size=10))
def test_where_leases_are_changes_neither_ranks_nor_how_many_go(
    leases: list[Lease], gpus: int, where: list[str]
) -> None:
    losses = Losses(
        topology=Topology.of(racks(*where)),
        placed={lease.id: [f"n{lease.id.int}"] for lease in leases},
    )
    chosen = choose(leases, gpus=gpus, now=NOW, losses=losses)
    assert total(chosen) >= min(gpus, total(can_go(leases)))
    if any(lease.is_firm(NOW) for lease in chosen):
        assert total([lease for lease in can_go(leases) if not lease.is_firm(NOW)]) < gpus


POOL = Pool(name="h200", gpus=24, policy=Policy(notice_seconds=10))


def job(number: int, gpus: int, *, running: bool = False) -> InternalJob:
    return InternalJob(
        id=UUID(int=number), name="training", gpu_model="h200", gpus=gpus, submitted_at=NOON,
        started_at=NOON if running else None,
    )  # fmt: skip


@given(fleets(), st.integers(0, 12), st.integers(0, 12), st.integers(0, 8))
def test_what_gave_way_comes_back_only_where_it_need_not_go_again(
    leases: list[Lease], running: int, pending: int, aside: int
) -> None:
    """No loops: once all is done that is asked for, nobody has to go, also who came back."""
    jobs = [job(1, running, running=True)] if running else []
    waiting = [job(2, pending)] if pending else []

    def going(those: list[Lease], queue: list[InternalJob]) -> set[LeaseId]:
        told = reclaim_all(
            those,
            pools=[POOL],
            demands=demand_by_pool(queue),
            aside={"h200": aside},
            losses=dict,
            now=NOW,
        )
        assert len(told) == len(set(told)), "each once"
        return set(told)

    told = going(leases, [*jobs, *waiting])
    stay = [
        lease for lease in leases
        if lease.id not in told and lease.state in CAN_GO and lease.release_asked is None
    ]  # fmt: skip
    held = sum(lease.gpus for lease in stay)
    served = [*jobs, *(replace(one, started_at=NOW) for one in waiting)]
    if running + pending + held > POOL.gpus:
        served = [*jobs, *waiting]  # other internal jobs are in its way, not leases
    for lease in (lease for lease in leases if lease.id in told):
        pressure = Pressure(
            gpus=POOL.gpus, internal_running=demand_of(served, "h200").running,
            internal_pending=demand_of(served, "h200").pending, leased=held, lendable=True,
            lending_limit=None, aside=aside,
        )  # fmt: skip
        if lease.gpus <= sellable_gpus(pressure):
            stay.append(lease)
            held += lease.gpus
    assert not going(stay, served) & told, "it came back and had to go again"


def test_of_a_large_pool_the_choice_is_the_same_one_by_one() -> None:
    many = [soft(number, tenant=number % 7, started=number) for number in range(1, 200)]
    assert [lease.id for lease in choose(many, gpus=60, now=NOW)[:30]] == [
        lease.id for lease in choose(many, gpus=30, now=NOW)
    ]
