"""Somebody sets the machine's clock by hours, forward and back, while leases run."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from tests.failpoints.plane import Plane
from tests.failpoints.test_control import LOOP, Tenant, await_state, tenant

from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer

HELD_NANOS = 5000


def hold(plane: Plane, tenant: Tenant) -> None:
    """Hold money for a request that is under way."""
    now = datetime.now(UTC)
    with plane.db.transaction() as tx:
        transfer = Transfer(
            id=new_id(), debit_account=ledger.get_account(tx, f"tenant:{tenant.id}:wallet").id,
            credit_account=ledger.get_account(tx, f"tenant:{tenant.id}:revenue").id,
            amount=Money(HELD_NANOS), reason="tokens", happened_at=now,
        )  # fmt: skip
        until = now + timedelta(minutes=15)
        ledger.hold(tx, transfer, holder="gateway:busy:1", expires_at=until, now=now)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_hours_that_never_were_expire_nothing_and_are_billed_to_nobody(
    control: Plane, restarted: bool
) -> None:
    rich = tenant(control, "rich", "1")
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    short = control.call("POST", "/v1/keys", {"name": "an hour", "expires_at": soon}, key=rich.key)
    hold(control, rich)
    began = time.monotonic()
    lease = rich.lease(LOOP)
    running = await_state(control, lease, "running")

    def goes_on() -> None:
        """It is paid for a block at a time, by a clock that went on."""
        paid = datetime.fromisoformat(control.call("GET", f"/v1/leases/{lease}")["paid_until"])

        def moved() -> bool:
            shown = control.call("GET", f"/v1/leases/{lease}")
            assert shown["state"] == "running"
            now = datetime.fromisoformat(shown["paid_until"])
            assert now - paid <= timedelta(seconds=time.monotonic() - began + 4)
            return now > paid

        control.until(moved)

    for hours in (3, 0, -3, 3):
        control.set_clock(hours=hours)
        if restarted:
            os.kill(control.pid, signal.SIGKILL)
        goes_on()
        # Neither a key nor a hold is older for it.
        assert control.call("GET", "/v1/me", key=short["key"])["role"] == "tenant"
    control.call("DELETE", f"/v1/leases/{lease}", key=rich.key)
    ended = await_state(control, lease, "ended")
    took = time.monotonic() - began
    assert ended["end_reason"] == "released" and ended["running_at"] == running["running_at"]
    held = Decimal(HELD_NANOS) / 10**9
    control.until(lambda: Decimal(rich.wallet()["held_usd"]) == held)
    charges = control.call("GET", "/v1/charges", key=rich.key)["items"]
    assert 4 <= sum(charge["quantity"] for charge in charges) <= took
    control.check(later=timedelta(minutes=1))
    if restarted:
        assert len(control.said("clock.resumed")) == 3  # once it was right
    else:
        assert len(control.said("clock.stepped")) == 4


def test_with_nothing_under_way_a_start_believes_the_machine(control: Plane) -> None:
    tenant(control, "rich", "1")
    control.set_clock(hours=-3)
    os.kill(control.pid, signal.SIGKILL)
    made = control.call("POST", "/v1/tenants", {"name": "later"})
    ago = datetime.now(UTC) - datetime.fromisoformat(made["created_at"])
    assert abs(ago - timedelta(hours=3)) < timedelta(minutes=1)
    control.check()
