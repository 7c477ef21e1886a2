"""How long selling takes: one admission with many live leases, and how many a second are durable.

    python benchmarks/admission.py                    100,000 live leases: a table
    python benchmarks/admission.py --leases 10000     fewer
    python benchmarks/admission.py --json             one flat object

It starts a PostgreSQL of its own in a temporary folder and fills it with leases that run, spread
over 200 pools. A decision is what comes before anything is written: the pool's lock, its prices,
what is held and promised of it, its plan, and the rules; from the transaction's first statement to
the verdict. `decide_*` is that, with leases as autovacuum leaves them; `churned_*` the same right after every lease was paid on for a minute, so
that no page is as it left them. `admit_*` is the whole of a sale, its commit to disk included.
`*_cpu_ms` is processor time of the client and of its PostgreSQL process together: it does not
depend on who else uses the machine. `durable_per_s` are sales as the API makes them, without HTTP:
each with an idempotency key, answered once it is on disk, to 32 callers in each of as many
processes as there are processors; those who wait share a commit. Choosing is a pure function: `choose_ms` is its processor time for
a pool that holds 20,000 leases.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psycopg  # noqa: E402
from fastapi import Response  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from sublet.app import bootstrap  # noqa: E402
from sublet.app.admissions import Admissions  # noqa: E402
from sublet.app.idempotency import Once  # noqa: E402
from sublet.core.clock import SystemClock  # noqa: E402
from sublet.core.db import Database, Tx  # noqa: E402
from sublet.core.ids import new_id  # noqa: E402
from sublet.core.migrations import migrate  # noqa: E402
from sublet.core.money import Money  # noqa: E402
from sublet.core.postgres import Postgres  # noqa: E402
from sublet.fleet import store as fleet  # noqa: E402
from sublet.leases import admission, reclaim, service, terms  # noqa: E402
from sublet.leases.admission import Asked  # noqa: E402
from sublet.leases.lease import Lease, LeaseId, State  # noqa: E402
from sublet.leases.service import Request  # noqa: E402
from sublet.leases.store import Spec  # noqa: E402
from sublet.market.price import Tier  # noqa: E402
from sublet.tenants import store as tenants  # noqa: E402
from sublet.tenants.tenant import Tenant, TenantId  # noqa: E402

NOW: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
_HOUR: Final = timedelta(hours=1)
_POOLS: Final = 200
_CALLERS: Final = 32
_SOLD: Final = (Tier.INTERRUPTIBLE, Tier.ON_DEMAND)
_WHAT: Final = {
    "leases": "live leases",
    "decide_ms_p50": "a decision, ms, middle",
    "decide_ms_p99": "99th percentile",
    "decide_cpu_ms": "processor time",
    "churned_ms_p50": "the same after a minute of every lease was paid, ms, middle",
    "churned_ms_p99": "99th percentile",
    "churned_cpu_ms": "processor time",
    "admit_ms_p50": "a sale, committed to disk, ms, middle",
    "admit_ms_p99": "99th percentile",
    "admit_cpu_ms": "processor time",
    "durable_per_s": "sales a second, answered when on disk (Kueue 42.7, KAI 10, Slurm 133)",
    "durable_cpu_ms": "processor time of each, ms",
    "load": "machine's load average meanwhile",
    "choose_gpus": "GPUs taken back at once",
    "choose_ms": "choosing who gives way for them, ms of processor time, middle",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--leases", type=int, default=100_000)
    parser.add_argument("--sales", type=int, default=1000, help="of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="of sales by all processors")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = {"leases": given.leases, **_selling(given), **_choosing()}
    if given.json:
        print(json.dumps(result))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, Python"
          f" {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}")  # fmt: skip
    for name, value in result.items():
        print(f"  {_WHAT[name]:66} {value:>12,}")


def _selling(given: argparse.Namespace) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    server = Postgres(folder / "postgres")
    try:
        server.start()
        with Database(server.url, connections=1) as db:
            migrate(db, clock=SystemClock())
            tenant = _fill(db, given.leases)
            dice = Random(1)

            def decide(spent: Callable[[], float]) -> tuple[float, float]:
                with db.transaction() as tx:
                    start, cpu = time.perf_counter(), spent()
                    _decide(tx, tenant, f"pool-{dice.randrange(_POOLS)}", dice.choice(_SOLD))
                    return time.perf_counter() - start, spent() - cpu

            def sell(spent: Callable[[], float]) -> tuple[float, float]:
                start, cpu = time.perf_counter(), spent()
                with db.transaction() as tx:
                    _sell(tx, tenant, dice)
                return time.perf_counter() - start, spent() - cpu

            result = {}
            for name, what, before in (
                ("decide", decide, "VACUUM ANALYZE lease"),  # as autovacuum has done by then
                ("churned", decide, "UPDATE lease SET paid_until = paid_until + interval '1 min'"),
                ("admit", sell, "VACUUM ANALYZE lease"),
            ):
                with psycopg.connect(server.url, autocommit=True) as connection:
                    connection.execute(before)
                result |= _measure(name, what, given.sales, db)
        result |= _together(server.url, tenant, given.seconds)
        result["load"] = round(os.getloadavg()[0], 1)
        return result
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _decide(tx: Tx, tenant: Tenant, name: str, tier: Tier) -> None:
    """Do what `admission.admit` does before it writes, but for the tenant's money."""
    pool = fleet.lock_pool(tx, name)
    notice = terms.notice_of(pool, None)
    price = service.prices_of(tx, pool, tier, notice=notice, tenant=tenant, now=NOW)
    firm = terms.firm_for(pool, tier, _HOUR)
    room = service.room_now(tx, pool, [], firm=firm, now=NOW)
    terms.check_room(pool, gpus=1, firm=firm, room=room, now=NOW)
    rate = price.contracted.rate
    service.check_price(tx, pool, rate, start=NOW, length=_HOUR, firm=firm, now=NOW)


def _sell(tx: Tx, tenant: Tenant, dice: Random) -> None:
    admission.admit(tx, tenant, _wanted(dice), jobs=[], now=NOW)


def _wanted(dice: Random) -> Request:
    return Request(
        pool=f"pool-{dice.randrange(_POOLS)}", gpus=1, tier=dice.choice(_SOLD),
        max_duration=_HOUR, spec=Spec(command=["x"]),
    )  # fmt: skip


def _together(url: str, tenant: Tenant, seconds: float) -> dict[str, float]:
    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        sold = [pool.submit(_sell_for, url, tenant.id, seconds, seed) for seed in range(workers)]
        found = [one.result() for one in sold]
    count = sum(sales for sales, _ in found)
    return {
        "durable_per_s": round(count / seconds),
        "durable_cpu_ms": round(sum(cpu for _, cpu in found) / max(count, 1) * 1000, 2),
    }


class _Body(BaseModel):
    """What a caller sent."""


def _sell_for(url: str, tenant_id: TenantId, seconds: float, seed: int) -> tuple[int, float]:
    """Return how many sales were answered, each after its commit, and seconds of processor time."""
    clock = SystemClock()
    with Database(url, connections=1) as db:
        with db.transaction() as tx:
            tenant, server = tenants.get_tenant(tx, tenant_id), tx.info.backend_pid
        admissions = Admissions(db, jobs=list, clock=clock)
        end = time.perf_counter() + seconds

        def call(number: int) -> int:
            dice = Random(seed * _CALLERS + number)
            sold = 0
            while time.perf_counter() < end:
                once = Once(
                    db=db, clock=clock, caller=f"tenant:{tenant_id}", key=str(new_id()),
                    method="POST", path="/v1/leases", status=201, response=Response(),
                )  # fmt: skip
                asked = Asked(tenant=tenant, request=_wanted(dice))
                admissions.sell(once, _Body(), asked, show=_show)
                sold += 1
            return sold

        spent = time.process_time() + _cpu_of(server)
        with ThreadPoolExecutor(_CALLERS) as callers:
            sold = sum(callers.map(call, range(_CALLERS)))
        return sold, time.process_time() + _cpu_of(server) - spent


def _show(_: Tx, leases: Sequence[Lease]) -> list[dict[str, object]]:
    return [{"id": lease.id, "state": lease.state} for lease in leases]


def _fill(db: Database, count: int) -> Tenant:
    with db.transaction() as tx:
        pools = {f"pool-{number}": 2 * count for number in range(_POOLS)}
        fleet.observe_pools(tx, pools, notice_seconds=60, now=NOW)
        bootstrap.first_prices(tx, list(pools), now=NOW)
        tenant = tenants.create_tenant(tx, "bench", now=NOW)
        bootstrap.open_accounts(tx, tenant)
        bootstrap.top_up(tx, tenant, Money(10**18), payment=1, now=NOW)
        tx.execute(
            """
            INSERT INTO lease (id, tenant_id, pool, gpus, tier, notice_seconds, price_id, workload,
                               max_seconds, requested_at, state, since, version, running_at,
                               ends_at, paid_until, firm_seconds)
            SELECT gen_random_uuid(), %(tenant)s, 'pool-' || n %% %(pools)s, 1,
                   CASE WHEN n %% 3 = 0 THEN 'on_demand' ELSE 'interruptible' END, 60, 1, '{}',
                   86400, %(now)s, 'running', %(now)s, 4, %(now)s,
                   %(now)s::timestamptz + interval '1 day', %(now)s::timestamptz + interval '1 minute',
                   CASE WHEN n %% 3 = 0 THEN 3600 ELSE 0 END
              FROM generate_series(1, %(count)s) AS n
            """,
            {"tenant": tenant.id, "pools": _POOLS, "now": NOW, "count": count},
        )
    return tenant


def _choosing() -> dict[str, float]:
    dice = Random(2)
    leases = [
        Lease(
            id=LeaseId(new_id()), tenant_id=UUID(int=dice.randrange(500)), pool="h200",
            gpus=dice.choice([1, 2, 4, 8]), tier=dice.choice(_SOLD), notice=timedelta(minutes=1),
            price_id=1, max_duration=timedelta(days=1), requested_at=NOW,
            state=State.RUNNING, since=NOW, version=4, firm=_HOUR,
            running_at=NOW - timedelta(seconds=dice.randrange(86_400)),
        )
        for _ in range(20_000)
    ]  # fmt: skip
    gpus = 10_000
    times = []
    for _ in range(7):
        start = time.process_time()
        reclaim.choose(leases, gpus=gpus, now=NOW)
        times.append((time.process_time() - start) * 1000)
    return {"choose_gpus": gpus, "choose_ms": round(statistics.median(times), 1)}


def _measure(
    name: str, what: Callable[[Callable[[], float]], tuple[float, float]], count: int, db: Database
) -> dict[str, float]:
    with db.transaction() as tx:
        server = tx.info.backend_pid

    def spent() -> float:
        return time.process_time() + _cpu_of(server)

    for _ in range(50):
        what(spent)
    times, cpu = zip(*(what(spent) for _ in range(count)), strict=True)
    times = sorted(seconds * 1000 for seconds in times)
    return {
        f"{name}_ms_p50": _quantile(times, 0.5),
        f"{name}_ms_p99": _quantile(times, 0.99),
        f"{name}_cpu_ms": round(sum(cpu) / count * 1000, 2),
    }


def _cpu_of(pid: int) -> float:
    """Return the time that a process has had a processor so far, in seconds, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def _quantile(times: Sequence[float], share: float) -> float:
    return round(times[min(int(len(times) * share), len(times) - 1)], 2)


if __name__ == "__main__":
    main()
