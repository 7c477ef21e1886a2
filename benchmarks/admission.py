"""How long selling takes: one admission with many live leases, and choosing who gives way.

    python benchmarks/admission.py                    100,000 live leases: a table
    python benchmarks/admission.py --leases 10000     fewer
    python benchmarks/admission.py --json             one flat object

It starts a PostgreSQL of its own in a temporary folder and fills it with leases that run, spread
over pools. Then it sells interruptible and on-demand leases, each in a transaction of its own:
`admit_ms` is that transaction, its commit to disk included, `decide_ms` the same without commit and
rolled back, of which PostgreSQL's work is a part. Choosing is a pure function: `choose_ms` is its
processor time for a pool that holds all of the leases.
"""

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psycopg  # noqa: E402

from sublet.app import bootstrap  # noqa: E402
from sublet.core.clock import SystemClock  # noqa: E402
from sublet.core.db import Database, Tx  # noqa: E402
from sublet.core.ids import new_id  # noqa: E402
from sublet.core.migrations import migrate  # noqa: E402
from sublet.core.money import Money  # noqa: E402
from sublet.core.postgres import Postgres  # noqa: E402
from sublet.fleet import store as fleet  # noqa: E402
from sublet.leases import reclaim, service  # noqa: E402
from sublet.leases.lease import Lease, LeaseId, State  # noqa: E402
from sublet.leases.service import Request  # noqa: E402
from sublet.leases.store import Spec  # noqa: E402
from sublet.market.price import Tier  # noqa: E402
from sublet.tenants import store as tenants  # noqa: E402
from sublet.tenants.tenant import Tenant  # noqa: E402

NOW: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
_POOLS: Final = 200
_WHAT: Final = {
    "leases": "live leases",
    "admit_ms_p50": "admission, committed to disk, ms, middle",
    "admit_ms_p99": "99th percentile",
    "decide_ms_p50": "the decision alone, rolled back, ms, middle",
    "decide_ms_p99": "99th percentile",
    "choose_gpus": "GPUs taken back at once",
    "choose_ms": "choosing who gives way for them, ms of processor time, middle",
}


class _Undone(Exception):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--leases", type=int, default=100_000)
    parser.add_argument("--sales", type=int, default=500, help="admissions of each kind")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = {"leases": given.leases, **_admissions(given.leases, given.sales), **_choosing()}
    if given.json:
        print(json.dumps(result))
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()},"
          f" {datetime.now(UTC):%Y-%m-%d}")  # fmt: skip
    for name, value in result.items():
        print(f"  {_WHAT[name]:60} {value:>12,}")


def _admissions(count: int, sales: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    server = Postgres(folder / "postgres")
    try:
        server.start()
        with Database(server.url) as db:
            migrate(db, clock=SystemClock())
            tenant = _fill(db, count)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE lease")  # as autovacuum has done by then
            dice = Random(1)

            def ask(tx: Tx) -> None:
                request = Request(
                    pool=f"pool-{dice.randrange(_POOLS)}", gpus=1, tier=dice.choice(_SOLD),
                    max_duration=timedelta(hours=1), spec=Spec(command=["x"]),
                )  # fmt: skip
                service.admit(tx, tenant, request, jobs=[], now=NOW)

            def sell() -> None:
                with db.transaction() as tx:
                    ask(tx)

            def decide() -> None:
                try:
                    with db.transaction() as tx:
                        ask(tx)
                        raise _Undone
                except _Undone:
                    pass

            for _ in range(20):
                sell()
            decided, sold = _times(decide, sales), _times(sell, sales)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "admit_ms_p50": _quantile(sold, 0.5), "admit_ms_p99": _quantile(sold, 0.99),
        "decide_ms_p50": _quantile(decided, 0.5), "decide_ms_p99": _quantile(decided, 0.99),
    }  # fmt: skip


_SOLD: Final = (Tier.INTERRUPTIBLE, Tier.ON_DEMAND)


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
            state=State.RUNNING, since=NOW, version=4, firm=timedelta(hours=1),
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


def _times(what: Callable[[], None], count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        what()
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


def _quantile(times: Sequence[float], share: float) -> float:
    return round(times[min(int(len(times) * share), len(times) - 1)], 2)


if __name__ == "__main__":
    main()
