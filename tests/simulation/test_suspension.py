"""A tenant that does not pay its bills, with a lease that runs, and the real loop."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.core.databases import fresh
from tests.simulation.shop import MINUTE, NOON, SECOND, World

from sublet.core.errors import Unpaid
from sublet.core.money import NANOS, Money
from sublet.core.seal import seal_all
from sublet.invoices import dunning, service, store
from sublet.invoices.dunning import Action, Step
from sublet.leases.lease import EndReason, State


@pytest.fixture
def world(postgres_url: str, template: str) -> Iterator[World]:
    with fresh(postgres_url, template) as db:
        yield World(db)


def test_a_suspended_tenants_lease_ends_where_it_is_paid_to_with_its_notice(world: World) -> None:
    late = world.other = world.new_tenant(0)
    with world.db.transaction() as tx:
        service.set_credit_line(tx, late.id, Money(100 * NANOS), now=NOON)
        store.put_profile(tx, replace(service.profile_of(tx, late), threshold=Money(1)))
        dunning.set_steps(tx, [Step(days=0, action=Action.SUSPEND)])
    lease = world.lease(4)
    world.until(NOON + 10 * MINUTE)
    now = world.clock.now()
    seal_all(world.db, now=now)
    with world.db.transaction() as tx:
        invoice = service.issue_due(tx, late.id, now=now)
        assert invoice is not None and invoice.payable_nanos > 0
        (step,) = service.dun_due(tx, late.id, now=now)
        assert step.action is Action.SUSPEND
    paid_until = world.show(lease).paid_until
    assert paid_until is not None and now < paid_until <= now + 2 * MINUTE
    with pytest.raises(Unpaid):
        world.lease(1)
    world.until(paid_until - SECOND)
    assert world.show(lease).state is State.RUNNING, "what was paid for is given"
    world.until(paid_until + MINUTE)
    ended = world.show(lease)
    assert (ended.state, ended.end_reason) == (State.ENDED, EndReason.CREDIT_EXHAUSTED)
    assert ended.stopped_at == paid_until
    told = world.engine.notice(lease)
    assert told is not None
    assert (told.reason, told.stops_at - told.noticed_at) == ("credit_exhausted", 10 * SECOND)
    with world.db.transaction() as tx:
        due = Money(invoice.payable_nanos)
        service.pay(tx, invoice.number, due, reference="transfer 1", now=world.clock.now())
        assert not dunning.is_suspended(tx, late)
    again = world.lease(1)
    world.until(world.clock.now() + MINUTE)
    assert world.show(again).state is State.RUNNING, "it pays, and buys again"
    world.finish()
