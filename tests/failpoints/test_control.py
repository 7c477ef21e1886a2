"""Every step of money in the control plane has a name, and may be its last.

One life of several leases is run first with nothing armed, which lists the steps. Then the
same again, and the process is killed at each of them, or loses its connection just before and
just after each COMMIT; it is started again, and the auditor looks at once.
"""

import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.core.databases import fresh_url
from tests.failpoints.plane import SLOTS, Plane, Zygote, plane

from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer

LOOP = ["sh", "-c", "while :; do sleep 0.05; done"]
BLOCK_NANOS = 25_000  # three seconds of a slot at 0.03 USD an hour


@dataclass(slots=True)
class Tenant:
    plane: Plane
    id: str
    key: str

    def lease(self, command: list[str], **more: Any) -> str:
        body = {"command": command, "gpus": 1, "max_seconds": 600} | more
        return str(self.plane.call("POST", "/v1/leases", body, key=self.key)["id"])

    def wallet(self) -> dict[str, Any]:
        return self.plane.call("GET", "/v1/wallet", key=self.key)


def tenant(plane: Plane, name: str, usd: str) -> Tenant:
    id_ = plane.call("POST", "/v1/tenants", {"name": f"{name} {new_id()}"})["id"]
    plane.call("POST", f"/v1/tenants/{id_}/credits", {"amount_usd": usd})
    key = plane.call("POST", f"/v1/tenants/{id_}/keys", {"name": "test"})["key"]
    return Tenant(plane, id_, key)


def await_state(plane: Plane, lease: str, state: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        shown = plane.call("GET", f"/v1/leases/{lease}")
        return shown if shown["state"] == state else None

    found: dict[str, Any] = plane.until(reached)
    return found


def abandon_a_hold(plane: Plane, tenant: Tenant) -> None:
    """Hold money as a gateway does that then dies for good."""
    now = datetime.now(UTC)
    with plane.db.transaction() as tx:
        wallet = ledger.get_account(tx, f"tenant:{tenant.id}:wallet")
        revenue = ledger.get_account(tx, f"tenant:{tenant.id}:revenue")
        transfer = Transfer(
            id=new_id(), debit_account=wallet.id, credit_account=revenue.id,
            amount=Money(1000), reason="tokens", happened_at=now,
        )  # fmt: skip
        until = now + timedelta(seconds=0.2)
        ledger.hold(tx, transfer, holder="gateway:gone:1", expires_at=until, now=now)


def soon(plane: Plane, path: str, key: str | None, body: Any) -> str:
    """Sell what begins in three seconds; `body` says what, from when and until when it is given."""
    while True:
        start = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
        said = body(start.isoformat(), (start + timedelta(seconds=6)).isoformat())
        try:
            return str(plane.call("POST", path, said | {"id": str(new_id())}, key=key)["id"])
        except AssertionError as error:  # it died so often that this is over
            if "in the past" not in str(error):
                raise


def sell_windows(plane: Plane, rich: Tenant) -> None:
    """Sell a window that starts by itself and a contract, and see both to their end."""
    window = soon(plane, "/v1/reservations", rich.key, lambda start, end: {
        "gpus": 1, "starts_at": start, "ends_at": end, "command": LOOP,
    })  # fmt: skip
    contract = soon(plane, "/v1/contracts", None, lambda start, end: {
        "tenant_id": rich.id, "name": "bulk", "ends_at": end, "minimum_usd": "0.01",
        "steps": [{"starts_at": start, "gpus": 1, "usd_per_gpu_hour": "0.06"}],
    })  # fmt: skip
    plane.until(
        lambda: plane.call("GET", f"/v1/reservations/{window}", key=rich.key)["state"] == "ended"
    )
    plane.until(lambda: plane.call("GET", f"/v1/contracts/{contract}")["state"] == "closed")


def live(plane: Plane) -> None:
    """Let leases live in every way, and look at the whole of it in the end."""
    rich, poor = tenant(plane, "rich", "1"), tenant(plane, "poor", "0.00006")
    abandon_a_hold(plane, rich)
    leases = {
        "completed": rich.lease(["sh", "-c", "sleep 6.4"]),
        "reclaimed": rich.lease(LOOP, tier="on_demand"),
        "credit_exhausted": poor.lease(LOOP),
    }
    # Over before its first second is: all that was held for it returns.
    assert await_state(plane, rich.lease(["true"]), "ended")["end_reason"] == "completed"
    leases["released"] = rich.lease(LOOP)
    await_state(plane, leases["released"], "running")
    plane.call("DELETE", f"/v1/leases/{leases['released']}", key=rich.key)
    for reason in ("released", "completed", "credit_exhausted"):
        assert await_state(plane, leases[reason], "ended")["end_reason"] == reason
    sell_windows(plane, rich)
    job = plane.call(
        "POST", "/v1/internal-jobs", {"command": ["sleep", "60"], "name": "ours", "gpus": SLOTS}
    )["id"]
    assert await_state(plane, leases["reclaimed"], "ended")["end_reason"] == "reclaimed"
    plane.call("DELETE", f"/v1/internal-jobs/{job}")
    plane.until(lambda: not Decimal(rich.wallet()["held_usd"]))
    plane.until(lambda: not Decimal(poor.wallet()["held_usd"]))

    plane.check(later=timedelta(minutes=1))
    # Each was asked for under a name, however often, and is there once.
    much = {"payment": 1, "credit": 1, "minimum": 1}
    for one, asked, given in ((rich, 4, much), (poor, 1, {"payment": 1})):
        found = plane.call("GET", "/v1/leases", key=one.key)["items"]
        assert sum(lease["tier"] != "reserved" for lease in found) == asked
        rows = plane.call("GET", "/v1/statement?limit=1000", key=one.key)["items"]
        assert Counter(row["reason"] for row in rows if row["reason"] != "lease") == given
    # Two blocks and a bit it could pay for, so two it had.
    assert Decimal(poor.wallet()["balance_usd"]) * 10**9 == 60_000 - 2 * BLOCK_NANOS


def declared() -> set[str]:
    """Return the names of all points in the source, but those of gateways' processes."""
    source = Path("src/sublet")
    text = "".join(
        path.read_text()
        for path in source.rglob("*.py")
        # Whose points gateways pass, or who is taught: see `test_tuning.py`.
        if not {"gateway", "suppliers", "tuning"} & set(path.parts)
    )
    named = set(re.findall(r'failpoint\("([a-z_.]+)"\)', text))
    return {name for name in named if not name.startswith("control.depose.")}  # takes two planes


@pytest.fixture(scope="module")
def steps(zygote: Zygote, postgres_url: str, template: str) -> set[str]:
    """Every step that is passed when nothing goes wrong."""
    folder = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    with fresh_url(postgres_url, template) as url, plane(zygote, url, folder) as control:
        live(control)
        assert control.deaths == []
        reached = control.reached()
    shutil.rmtree(folder)
    return reached


def test_a_life_passes_every_step_that_has_a_name(steps: set[str]) -> None:
    assert declared() - steps == set()
    print(*sorted(steps), sep="\n")


def test_whichever_step_is_the_last_the_books_add_up(
    zygote: Zygote, database_url: str, folder: Path, steps: set[str]
) -> None:
    with plane(zygote, database_url, folder, plan="* kill") as control:
        for _ in range(3):  # on a slow machine, some step may not have been taken at first
            live(control)
            killed = {mark.removesuffix(" kill") for mark in control.fired()}
            if killed >= steps:
                break
        print(len(killed), "steps, at each of which it died")
        assert killed >= steps
        control.until(lambda: len(control.deaths) == len(killed))


def test_a_connection_lost_around_any_commit_costs_nothing(
    zygote: Zygote, database_url: str, folder: Path, steps: set[str]
) -> None:
    commits = {f"{step} drop" for step in steps if step.endswith("_commit")}
    with plane(zygote, database_url, folder, plan="* drop") as control:
        live(control)
        # A start that is cut off ends, and a supervisor starts it again.
        assert len(control.deaths) == 2
        if not control.fired() >= commits:
            control.kill()  # what it does once a minute it does at its start
            live(control)
        assert control.fired() >= commits
        print("cut off at", len(control.fired()), "commits")
