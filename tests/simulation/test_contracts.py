"""Contracts from their signing to their last bill, with the real loop on a simulated cluster."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from tests.core.databases import fresh
from tests.simulation.shop import HOUR, MINUTE, NOON, POOL, SECOND, WALLET, World

from sublet.app import bootstrap
from sublet.app.audit import audit
from sublet.core.errors import Invalid, NotFound, Refused, Unconfirmed
from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.engine.port import Node
from sublet.fleet import store as fleet
from sublet.fleet.coming import Coming
from sublet.leases import booking, contracts, expected, policy
from sublet.leases.contract import Contract, Step, bill, total
from sublet.leases.lease import EndReason, State
from sublet.market import service as pricing
from sublet.market import store as market
from sublet.market.floor import Cost
from sublet.market.price import Tier, lease_sku
from sublet.metering.credits import list_credits

DAY = 24 * HOUR
RATE = Rate(nanos=1_000_000_000, per=3600)  # a dollar a GPU-hour


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    with fresh(postgres_url, template) as db:
        yield World(db)


def sign(world: World, *, exception: str | None = None, **changes: Any) -> Contract:
    wanted = Contract(
        id=new_id(), tenant_id=world.acme.id, pool=POOL, name="bulk",
        steps=(
            Step(starts_at=NOON + DAY, gpus=2, rate=RATE),
            Step(starts_at=NOON + 3 * DAY, gpus=4, rate=RATE),
        ),
        ends_at=NOON + 5 * DAY, signed_at=NOON, notice=10 * SECOND, minimum=Money(0),
        shortfall_percent=50, notice_days=1, recall_days=1, renewal_days=0,
    )  # fmt: skip
    with world.db.transaction() as tx:
        return contracts.sign(
            tx, replace(wanted, **changes), now=world.clock.now(), exception=exception
        )


def show(world: World, contract: Contract) -> Contract:
    with world.db.transaction() as tx:
        return contracts.get_contract(tx, contract.id)


def owed(contract: Contract) -> int:
    return total(bill(contract, NOON, NOON + 99 * DAY)).nanos


def test_a_contract_is_charged_what_its_bill_says_used_or_not(world: World) -> None:
    contract = sign(world, minimum=Money(400 * 10**9))
    world.until(NOON + SECOND)
    assert world.wallet(world.acme) == (0, 48 * 10**9), "a day ahead"
    world.until(NOON + 5 * DAY + MINUTE, 6 * HOUR)
    done = show(world, contract)
    assert done.closed
    assert world.wallet(world.acme) == (owed(done), 0) == (400 * 10**9, 0)
    world.finish()


def test_what_a_contract_was_promised_is_not_sold_to_others(world: World) -> None:
    contract = sign(world)
    world.until(NOON + DAY + MINUTE, 6 * HOUR)
    with pytest.raises(Refused, match="6 can be sold now"):
        world.lease(7)
    soft = world.lease(6)
    with world.db.transaction() as tx:
        step, later = contracts.steps_of(tx, contract.id)
    lease = world.draw(step, 2)
    assert lease.tier is Tier.CONTRACT
    with pytest.raises(Refused, match="has not begun"):
        world.draw(later, 1)
    with pytest.raises(Refused, match="4 are not promised to others then"):
        sign(
            world,
            steps=(Step(starts_at=NOON + 2 * DAY, gpus=5, rate=RATE),),
            ends_at=NOON + 5 * DAY,
        )
    world.until(world.clock.now() + 3 * MINUTE, MINUTE)
    # An internal job comes first here too; what is not firm goes before a contract.
    world.internal(6)
    world.until(world.clock.now() + 30 * SECOND)
    assert world.show(soft).end_reason is EndReason.RECLAIMED
    assert world.show(lease.id).state is State.RUNNING
    world.internal(2)
    world.until(world.clock.now() + 30 * SECOND)
    gone = world.clock.now()
    with world.db.transaction() as tx:
        assert contracts.steps_of(tx, contract.id)[0].lost_gpus == 2
        assert list_credits(tx, world.acme.id, limit=9) == [], "credited with its day"
    world.until(NOON + 5 * DAY + MINUTE, 6 * HOUR)
    # The internal jobs stay, so the second step is late for all of its time.
    done = show(world, contract)
    assert (done.delivered(0), done.delivered(1)) == (2, 0)
    (lost,) = done.breaks
    assert (lost.lease_id, lost.gpus) == (lease.id, 2)
    assert gone - MINUTE < lost.at < gone
    with world.db.transaction() as tx:
        first, second = sorted(
            (one for one in list_credits(tx, world.acme.id, limit=99) if one["lease_id"]),
            key=lambda one: one["happened_at"],
        )
    assert {(one["lease_id"], one["percent"], one["gpus"]) for one in (first, second)} == {
        (lease.id, 50, 2)
    }
    assert (first["happened_at"], second["happened_at"]) == (lost.at, NOON + 2 * DAY)
    assert second["amount_nanos"] == 24 * 10**9, "half of two GPUs for a day"
    assert [one["state"] for one in first["evidence"]["lease_events"]][-1] == "ended"
    seconds = (NOON + 2 * DAY - lost.at) // SECOND
    assert owed(done) == 3 * 24 * 10**9 - round(seconds * 10**9 / 3600)
    assert world.wallet(world.acme) == (owed(done), 0)
    world.finish()
    with world.db.transaction() as tx:
        tx.execute("ALTER TABLE contract_break DISABLE TRIGGER the_past_stands")
        tx.execute("UPDATE contract_break SET gpus = 1")
    assert any(
        "was broken by 1 GPUs" in found.what
        for found in audit(world.db, clock=world.clock).differences
    )


def test_a_step_takes_over_what_the_one_before_it_had(world: World) -> None:
    contract = sign(world)
    world.until(NOON + 3 * DAY - 2 * MINUTE, 6 * HOUR)
    with world.db.transaction() as tx:
        step, later = contracts.steps_of(tx, contract.id)
    world.draw(step, 1)
    beside = world.lease(4)
    world.until(NOON + 3 * DAY + MINUTE, 5 * SECOND)
    assert world.show(beside).state is State.RUNNING, "four of eight were enough"
    world.draw(later, 4)
    world.finish()


def test_who_ends_a_broken_contract_gets_nothing_back_for_what_it_no_longer_owes(
    world: World,
) -> None:
    contract = sign(world, shortfall_percent=100)
    world.until(NOON + DAY + MINUTE, 6 * HOUR)
    with world.db.transaction() as tx:
        step = contracts.steps_of(tx, contract.id)[0]
    world.draw(step, 2)
    world.until(world.clock.now() + MINUTE, 10 * SECOND)
    world.internal(8)
    world.until(world.clock.now() + MINUTE, 10 * SECOND)
    with world.db.transaction() as tx:
        contracts.end_early(tx, contract.id, "tenant", tenant_id=None, now=world.clock.now())
    world.until(NOON + 4 * DAY, 6 * HOUR)
    (lost,) = show(world, contract).breaks
    used = (lost.at - NOON - DAY) // SECOND
    assert world.wallet(world.acme) == (round(used * 2 * 10**9 / 3600), 0)
    world.finish()


@pytest.mark.parametrize("who", ["tenant", "operator"])
def test_a_contract_that_is_ended_early_is_owed_until_then(world: World, who: str) -> None:
    contract = sign(world, minimum=Money(300 * 10**9))
    world.until(NOON + DAY + HOUR, 6 * HOUR)
    with world.db.transaction() as tx:
        ended = contracts.end_early(tx, contract.id, who, tenant_id=None, now=world.clock.now())
    assert ended.ends_at == world.clock.now() + DAY
    assert [step.gpus for step in ended.steps] == [2]
    with pytest.raises(Refused, match="already"), world.db.transaction() as tx:
        contracts.end_early(tx, contract.id, who, tenant_id=None, now=world.clock.now())
    world.until(NOON + 3 * DAY, 6 * HOUR)
    capacity = 25 * 2 * 10**9
    assert world.wallet(world.acme) == (300 * 10**9 if who == "tenant" else capacity, 0)
    assert show(world, contract).closed
    world.finish()


def test_a_contract_that_nobody_ends_goes_on(world: World) -> None:
    contract = sign(world, renewal_days=2)
    world.until(NOON + 4 * DAY - MINUTE, 6 * HOUR)
    assert show(world, contract).ends_at == NOON + 5 * DAY
    world.until(NOON + 4 * DAY + MINUTE, MINUTE)
    assert show(world, contract).ends_at == NOON + 7 * DAY
    world.until(NOON + 6 * DAY, 6 * HOUR)
    with world.db.transaction() as tx:
        contracts.end_early(tx, contract.id, "tenant", tenant_id=None, now=world.clock.now())
    world.until(NOON + 7 * DAY + HOUR, 6 * HOUR)
    assert world.wallet(world.acme) == ((2 * 2 + 4 * 4) * 24 * 10**9, 0)
    world.finish()


def test_who_cannot_pay_for_the_next_day_leases_nothing_until_it_can(world: World) -> None:
    poor = world.acme = world.new_tenant(50 * 10**9)
    contract = sign(world, tenant_id=poor.id)
    world.until(NOON + 2 * DAY + MINUTE, 6 * HOUR)
    with world.db.transaction() as tx:
        step = contracts.steps_of(tx, contract.id)[0]
    assert step.unpaid
    with pytest.raises(Refused, match="could not pay for the next day"):
        world.draw(step, 1)
    world.lease(8)  # meanwhile others may have them
    with world.db.transaction() as tx:
        bootstrap.top_up(tx, poor, Money(WALLET), payment=2, now=world.clock.now())
    world.until(NOON + 5 * DAY + MINUTE, 6 * HOUR)
    # It began with 50 dollars and got as many more as the others have.
    assert world.wallet(poor) == (owed(contract) - 50 * 10**9, 0)
    assert show(world, contract).closed
    world.finish()


def test_capacity_that_is_late_costs_less_until_it_is_there(world: World) -> None:
    contract = sign(world, late_percent=50)
    world.until(NOON + DAY - HOUR, 6 * HOUR)
    job = world.internal(7)  # one is left of two
    world.until(NOON + DAY + 6 * HOUR, HOUR)
    assert show(world, contract).delivered(0) == 1
    with world.db.transaction() as tx:
        step = contracts.steps_of(tx, contract.id)[0]
    with pytest.raises(booking.NotFree):
        world.draw(step, 2)
    with world.db.transaction() as tx:
        booking.wait_for(tx, step.id, now=world.clock.now())
    first = world.draw(step, 1)
    world.until(world.clock.now() + MINUTE, 5 * SECOND)
    with world.db.transaction() as tx:
        assert contracts.steps_of(tx, contract.id)[0].lost_gpus == 0, "late is not taken back"
    world.engine.cancel_internal(job)
    world.until(world.clock.now() + 10 * SECOND)
    done = show(world, contract)
    assert done.delivered(0) == 2
    second = world.draw(step, 1)
    world.until(world.clock.now() + MINUTE, 5 * SECOND)
    assert {world.show(one.id).state for one in (first, second)} == {State.RUNNING}
    world.until(NOON + 5 * DAY + MINUTE, 6 * HOUR)
    (late,) = done.late(0)
    assert (late.gpus, late.start) == (1, NOON + DAY)
    seconds = (late.end - late.start) // SECOND
    with world.db.transaction() as tx:
        (credit,) = list_credits(tx, world.acme.id, limit=9)
    assert int(credit["amount_nanos"]) == round(seconds * 10**9 / 3600 / 2)
    assert [one["gpus"] for one in credit["evidence"]["deliveries"]] == [1, 2]
    assert [one["gpus"] for one in credit["evidence"]["internal_jobs"]] == [7]
    assert world.wallet(world.acme) == (owed(show(world, contract)), 0)
    world.finish()
    with world.db.transaction() as tx:  # a credit that nothing explains is found
        tx.execute("ALTER TABLE credit DISABLE TRIGGER the_past_stands")
        tx.execute("UPDATE credit SET happened_at = happened_at + interval '1 hour'")
    assert any(
        "was late with" in found.what or "nanos were due" in found.what
        for found in audit(world.db, clock=world.clock).differences
    )


def test_who_waits_too_long_for_its_capacity_ends_it_without_the_minimum(world: World) -> None:
    contract = sign(
        world, late_days=1, late_percent=100, notice_days=90, minimum=Money(400 * 10**9),
        steps=(
            Step(starts_at=NOON + DAY, gpus=2, rate=RATE),
            Step(starts_at=NOON + 2 * DAY + HOUR * 24, gpus=4, rate=RATE),
        ),
    )  # fmt: skip
    world.internal(8)
    world.until(NOON + DAY + 23 * HOUR, HOUR)
    assert not show(world, contract).is_too_late(world.clock.now())
    world.until(NOON + 2 * DAY + 12 * HOUR, HOUR)  # the next step's first day is held by now
    with world.db.transaction() as tx:
        ended = contracts.end_early(
            tx, contract.id, "tenant", tenant_id=world.acme.id, now=world.clock.now()
        )
    assert (ended.ended_by, ended.ends_at) == ("late", world.clock.now())
    world.until(NOON + 4 * DAY, 6 * HOUR)
    assert show(world, contract).closed
    assert world.wallet(world.acme) == (0, 0), "nothing was there, so nothing is paid"
    world.finish()


def test_half_of_what_is_missing_to_the_minimum_is_owed_if_that_was_agreed(world: World) -> None:
    sign(world, minimum=Money(584 * 10**9), missing_percent=50)
    world.until(NOON + 5 * DAY + MINUTE, 6 * HOUR)
    assert world.wallet(world.acme) == ((288 + 148) * 10**9, 0)
    world.finish()


def declare(world: World, gpus: int, ready_at: datetime, pool: str = POOL) -> Coming:
    hall = Coming(id=new_id(), pool=pool, name="hall 2", gpus=gpus, ready_at=ready_at)
    with world.db.transaction() as tx:
        return expected.declare(tx, hall, now=world.clock.now())


def change(world: World, hall: Coming, *, confirmed: bool = False, **new: Any) -> Coming:
    given = {"gpus": None, "ready_at": None, **new}
    with world.db.transaction() as tx:
        return expected.change(
            tx, hall.id, gpus=given["gpus"], ready_at=given["ready_at"], confirmed=confirmed,
            now=world.clock.now(),
        )  # fmt: skip


def test_capacity_that_is_still_to_come_can_be_signed_and_no_more(world: World) -> None:
    hall = declare(world, 8, NOON + 3 * DAY)
    rate = Rate(nanos=10**8, per=3600)
    ramp = (
        Step(starts_at=NOON + DAY, gpus=2, rate=rate),
        Step(starts_at=NOON + 3 * DAY, gpus=14, rate=rate),
    )
    with pytest.raises(Invalid, match="17 GPUs are more than pool h200 has: 8, and 8 are declared"):
        sign(world, steps=(ramp[0], replace(ramp[1], gpus=17)))
    with pytest.raises(Invalid, match="9 GPUs are more than pool h200 has: 8, and 0 are declared"):
        sign(world, steps=(replace(ramp[0], gpus=9),))
    contract = sign(world, steps=ramp, ends_at=NOON + 6 * DAY)
    with pytest.raises(Refused, match="2 are not promised to others then"):
        sign(world, steps=(replace(ramp[0], gpus=3),), ends_at=NOON + 5 * DAY)
    other = sign(world, steps=(replace(ramp[0], gpus=2),), ends_at=NOON + 5 * DAY)
    # Nobody else is sold what is not there.
    with pytest.raises(Invalid, match="has 8 GPUs"):
        world.lease(9)
    # It is postponed: whoever stands on it is shown, and stands.
    for new in ({"ready_at": NOON + 4 * DAY}, {"gpus": 7}, {"gpus": 0}):
        with pytest.raises(Unconfirmed, match="signed against this capacity") as asked:
            change(world, hall, **new)
        assert {hit["id"] for hit in asked.value.hits} <= {contract.id, other.id}
        assert str(contract.id if "gpus" not in new else other.id) in str(asked.value)
    change(world, hall, ready_at=NOON + 4 * DAY, confirmed=True)
    world.until(NOON + 4 * DAY, 6 * HOUR)
    late = show(world, contract)
    assert late.delivered(1) == 6, "two of eight are the other's"
    more = Node(name="n2", gpu_model=POOL, gpus=8, memory_bytes=8 << 30)
    world.engine.set_nodes([*world.engine.nodes(), more])
    world.until(NOON + 6 * DAY + MINUTE, 6 * HOUR)
    done = show(world, contract)
    assert done.delivered(1) == 14
    (missing,) = done.late(1)
    assert (missing.gpus, missing.start) == (8, NOON + 3 * DAY)
    late_seconds = (missing.end - missing.start) // SECOND
    assert owed(contract) - owed(done) == 8 * late_seconds * 10**8 // 3600
    assert done.closed
    world.finish()


def test_a_pool_of_which_nothing_is_there_yet_can_be_signed(world: World) -> None:
    with pytest.raises(NotFound):
        declare(world, 64, NOON + 90 * DAY, pool="gb300")
    with world.db.transaction() as tx:
        fleet.expect_pool(tx, "gb300", notice_seconds=60, now=NOON)
    hall = declare(world, 64, NOON + 90 * DAY, pool="gb300")
    with world.db.transaction() as tx:
        assert expected.declare(tx, hall, now=NOON) == hall, "twice is once"
        with pytest.raises(Invalid, match="something else"):
            expected.declare(tx, replace(hall, gpus=65), now=NOON)
    steps = (Step(starts_at=NOON + 90 * DAY, gpus=64, rate=RATE),)
    signed = sign(world, pool="gb300", steps=steps, ends_at=NOON + 455 * DAY)
    assert signed.most_gpus == 64
    with pytest.raises(Unconfirmed):
        change(world, hall, gpus=0)
    world.until(NOON + MINUTE, 10 * SECOND)
    world.finish()


def test_a_policy_that_would_strand_a_contract_is_asked_about(world: World) -> None:
    contract = sign(world)
    with world.db.transaction() as tx:
        pool = fleet.lock_pool(tx, POOL)
    wanted = replace(pool.policy, lending_limit=3)
    with pytest.raises(Unconfirmed, match=f"contract {contract.id}"), world.db.transaction() as tx:
        policy.change(tx, POOL, wanted, confirmed=False, now=NOON)


def test_another_tenants_contract_does_not_exist(world: World) -> None:
    contract = sign(world)
    with pytest.raises(NotFound), world.db.transaction() as tx:
        contracts.get_contract(tx, contract.id, tenant_id=world.other.id)


def test_no_sale_is_below_its_floor_without_a_named_exception(world: World) -> None:
    cost = Cost.of_usd(
        watts=1000, pue=1.0, usd_per_kwh="0.1", wear="0", support="0", capital="1000"
    )
    with world.db.transaction() as tx:
        pricing.set_floor(tx, POOL, cost, capital_share=0, exception=None, now=NOON)
        pricing.set_floor(tx, POOL, cost, capital_share=1, exception="launch", now=NOON)
    with pytest.raises(Refused, match="its floor is"):
        sign(world)
    with world.db.transaction() as tx:
        assert contracts.list_of(tx, world.acme.id) == []
    sign(world, exception="first customer")
    world.lease(1)
    assert audit(world.db, clock=world.clock).differences == []
    with world.db.transaction() as tx:  # what nobody can do by the API: a cheap price slips in
        sku = lease_sku(POOL, Tier.INTERRUPTIBLE)
        market.set_price(tx, sku, market.usd_per_hour("0.01"), now=world.clock.now())
    sold = world.lease(1)
    (found,) = audit(world.db, clock=world.clock).differences
    assert f"{sold} the first, were below floor" in found.what
