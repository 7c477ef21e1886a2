"""A thousand ask for a lease at once, two of four processes are killed: the wallet says how many."""

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from fastapi import Response
from pydantic import BaseModel

from sublet.app import bootstrap
from sublet.app.admissions import Admissions
from sublet.app.audit import audit
from sublet.app.idempotency import Once
from sublet.core import failpoint
from sublet.core.clock import SystemClock
from sublet.core.db import Database
from sublet.core.errors import Unavailable, Unpaid
from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.core.process import wait_for
from sublet.fleet import store as fleet
from sublet.leases import store
from sublet.leases.admission import Asked, admit
from sublet.leases.lease import LeaseId, State
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.market import store as market
from sublet.market.price import Tier, lease_sku
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

POOL = "ample"
PROCESSES, THREADS = 4, 10
ASKED, WORTH = 1000, 50
# The steps at which the last two of them die, as by the power button: the money and the GPUs of a
# lease are set aside and nothing is committed; and they are committed and nobody was told.
DEATHS = ("before_commit", "after_commit")
SELLS = {False: "*.alone", True: "admissions.sell"}
MINUTE = timedelta(minutes=1)
NANOS = 333_333_333  # a GPU-minute
GATE = 815


class Body(BaseModel):
    id: UUID


def seller(db: Database, tenant: Tenant, *, together: bool) -> Callable[[Request], str]:
    """Return what sells: to each by itself, or as the API does, to all who wait."""

    def alone(wanted: Request) -> str:
        with db.transaction() as tx:
            return admit(tx, tenant, wanted, jobs=[], now=datetime.now(UTC)).state

    clock = SystemClock()
    admissions = Admissions(db, jobs=list, clock=clock)

    def with_others(wanted: Request) -> str:
        assert wanted.id is not None
        once = Once(
            db=db, clock=clock, caller=f"tenant:{tenant.id}", key=None, method="POST",
            path="/v1/leases", status=201, response=Response(),
        )  # fmt: skip
        asked = Asked(tenant=tenant, request=wanted)
        show = lambda _, leases: [{"state": lease.state} for lease in leases]  # noqa: E731
        said: str = admissions.sell(once, Body(id=wanted.id), asked, show=show)["state"]
        return said

    return with_others if together else alone


def ask(url: str, tenant: Tenant, ids: Sequence[UUID], *, together: bool) -> list[str]:
    """Ask for a lease with each of these ids, all at once; say what came of it."""
    request = Request(
        pool=POOL, gpus=1, tier=Tier.INTERRUPTIBLE, max_duration=MINUTE, spec=Spec(command=["x"])
    )
    with Database(url, connections=THREADS, wait_seconds=60) as db:
        sell = seller(db, tenant, together=together)

        def work(mine: list[UUID]) -> list[str]:
            with db.transaction() as tx:  # until the test opens the gate
                tx.execute("SELECT pg_advisory_xact_lock_shared(%s)", [GATE])
            return [one(LeaseId(id_)) for id_ in mine]

        def one(id_: LeaseId) -> str:
            wanted = replace(request, id=id_)
            try:
                return sell(wanted)
            except (Unpaid, Unavailable) as error:
                return error.code

        with ThreadPoolExecutor(THREADS) as threads:
            shares = [ids[number::THREADS] for number in range(THREADS)]
            return [answer for part in threads.map(work, shares) for answer in part]


def be_asker(
    answers: Connection,
    url: str,
    tenant: Tenant,
    ids: Sequence[UUID],
    together: bool,
    deaths: str | None,
) -> None:
    failpoint.arm({} if deaths is None else {failpoint.VARIABLE: deaths})
    answers.send(ask(url, tenant, ids, together=together))


@dataclass
class Asker:
    """A process that asks."""

    url: str
    tenant: Tenant
    ids: Sequence[UUID]
    together: bool
    deaths: Path | None = None  # a plan of failpoints

    def __post_init__(self) -> None:
        # Spawned, not forked: a fork would share the sockets of this process's connections.
        context = get_context("spawn")
        self.answers, theirs = context.Pipe(duplex=False)
        deaths = None if self.deaths is None else str(self.deaths)
        self.process = context.Process(
            target=be_asker, args=(theirs, self.url, self.tenant, self.ids, self.together, deaths)
        )
        self.process.start()
        theirs.close()

    def end(self) -> list[str]:
        """Wait for its end; return what it was answered, which nobody knows of one that died."""
        answers: list[str] = []
        try:
            if self.answers.poll(240):
                answers = self.answers.recv()
        except EOFError:
            pass
        self.process.join(60)
        return answers


def open_shop(db: Database, minutes: int) -> Tenant:
    now = datetime.now(UTC)
    with db.transaction() as tx:
        fleet.observe_pools(tx, {POOL: 10 * ASKED}, notice_seconds=10, now=now)
        rate = Rate(nanos=NANOS, per=60)
        market.set_price(tx, lease_sku(POOL, Tier.INTERRUPTIBLE), rate, now=now)
        tenant = tenants.create_tenant(tx, "acme", now=now)
        bootstrap.open_accounts(tx, tenant)
        bootstrap.top_up(tx, tenant, Money(minutes * NANOS), payment=1, now=now)
    return tenant


def plan(folder: Path, step: str) -> Path:
    for name in ("reached", "fired"):
        (folder / name).mkdir(parents=True)
    (folder / "plan").write_text(f"{step} kill\n")
    return folder


@pytest.mark.parametrize("together", [False, True])
def test_a_wallet_worth_so_many_first_minutes_leases_so_many(
    db: Database, database_url: str, folder: Path, *, together: bool
) -> None:
    tenant = open_shop(db, WORTH)
    # A quarter of the ids are asked for twice, at about the same time.
    ids = [new_id() for _ in range(ASKED * 3 // 4)]
    ids += ids[: ASKED - len(ids)]
    deaths = [
        plan(folder / str(number), f"{SELLS[together]}.{step}")
        for number, step in enumerate(DEATHS)
    ]
    plans = [*[None] * (PROCESSES - len(deaths)), *deaths]
    with psycopg.connect(database_url, autocommit=True) as gate:
        gate.execute("SELECT pg_advisory_lock(%s)", [GATE])
        askers = [
            Asker(database_url, tenant, ids[number::PROCESSES], together, deaths=plans[number])
            for number in range(PROCESSES)
        ]

        def all_wait() -> bool:
            assert all(asker.process.is_alive() for asker in askers)
            row = gate.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            ).fetchone()
            return row is not None and row[0] == PROCESSES * THREADS

        try:
            assert wait_for(all_wait, wait_seconds=240)
        finally:
            gate.execute("SELECT pg_advisory_unlock(%s)", [GATE])
            ended = [asker.end() for asker in askers]
    codes = [asker.process.exitcode for asker in askers]
    assert codes == [0] * (PROCESSES - len(deaths)) + [-signal.SIGKILL] * len(deaths)
    # Those who come after the dead ask for the same once more.
    ended += [
        ask(database_url, tenant, asker.ids, together=together) for asker in askers[-len(deaths) :]
    ]
    answers = [answer for one in ended for answer in one]

    assert len(answers) == ASKED
    assert set(answers) == {State.ADMITTED, Unpaid.code}, Counter(answers)
    with db.transaction() as tx:
        wallet = ledger.get_account(tx, tenant.wallet)
        leases = store.list_of(tx, tenant.id, limit=ASKED, before=None, live=False)
        when = SystemClock().now()
        assert store.standing(tx, POOL, now=when, soon=when).held == WORTH
    assert len(leases) == WORTH
    # An id that was asked for twice and got its lease is told of it twice.
    admitted = Counter(id_ for id_ in ids if id_ in {lease.id for lease in leases})
    assert WORTH <= answers.count(State.ADMITTED) <= admitted.total()
    assert (wallet.held.nanos, wallet.available.nanos) == (WORTH * NANOS, 0)
    assert audit(db, clock=SystemClock()).differences == []
