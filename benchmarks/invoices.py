"""How long it takes to put a month's charges on invoices, and in how much memory.

    python benchmarks/invoices.py --json

A server of its own is filled with a past (see ledger_of.py) of so many charges by so many tenants; a
process of its own issues what is due of each of them, as `sublet invoice run` does, and the auditors
then look at all of it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psycopg  # noqa: E402
from benchmarks.ledger_of import fill  # noqa: E402

from sublet.core.audit import Findings  # noqa: E402
from sublet.core.db import Database  # noqa: E402
from sublet.core.postgres import Postgres  # noqa: E402
from sublet.invoices import audit  # noqa: E402

_ISSUE: Final = """
import json, resource, sys, time
from datetime import UTC, datetime, timedelta
from sublet.core.db import Database
from sublet.invoices import service
from sublet.tenants import store as tenants

began, numbers = time.monotonic(), 0
now = datetime.now(UTC) + timedelta(days=40)  # the month is over
with Database(sys.argv[1]) as db:
    with db.transaction() as tx:
        found = tenants.list_tenants(tx)
    for tenant in found:
        with db.transaction() as tx:
            numbers += service.issue_due(tx, tenant.id, now=now) is not None
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "invoices": numbers,
    "seconds": round(time.monotonic() - began, 1),
    "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    "peak_rss_mib": usage.ru_maxrss >> 10,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--charges", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sublet-invoices-"))
    server = Postgres(folder / "postgres", settings={"max_wal_size": "4GB"})
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
    try:
        server.start()
        # Of a thousand transfers about 515 charge something.
        fill(server.url, round(given.charges / 0.515), tenants=given.tenants,
             show=lambda text: print(text, file=sys.stderr, flush=True))  # fmt: skip
        with psycopg.connect(server.url) as connection:
            row = connection.execute("SELECT count(*), sum(amount_nanos) FROM charge").fetchone()
            assert row is not None
            found["charges"] = row[0]
            ran = subprocess.run(
                [sys.executable, "-c", _ISSUE, server.url],
                env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            found |= json.loads(ran.stdout)
            billed = connection.execute("SELECT sum(net_nanos) FROM invoice").fetchone()
            assert billed == (row[1],), (billed, row)
        findings = Findings()
        with Database(server.url) as db, db.transaction() as tx:
            audit.audit(tx, findings)
        found["differences"] = len(findings.differences)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    found["measured_on"] = datetime.now(UTC).date().isoformat()
    if given.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
