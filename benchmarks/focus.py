"""How many rows of FOCUS a second, and in how much memory: an export of a month that is full.

    python benchmarks/focus.py --rows 10000000 --json

A server of its own is filled with a past (see ledger_of.py) whose charges have three lines each; a
process of its own exports all of it, as Parquet and as CSV, and says how much memory it had at most.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psycopg  # noqa: E402
from benchmarks.ledger_of import fill  # noqa: E402

from sublet.core.postgres import Postgres  # noqa: E402

_EXPORT: Final = """
import json, resource, sys, time
from datetime import UTC, date, datetime
from sublet.core.db import Database
from sublet.finance.focus.columns import Dataset, Form, Version
from sublet.finance.focus.export import export

url, form, months = sys.argv[1], Form(sys.argv[2]), [date.fromisoformat(m) for m in sys.argv[3:]]
size, began = 0, time.monotonic()
with Database(url) as db, db.transaction() as tx:
    tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    for month in months:
        pieces = export(
            tx, Dataset.COST_AND_USAGE, Version.V1_4, form, month=month, seller="Example Compute",
            tenant_id=None, now=datetime.now(UTC),
        )
        for piece in pieces:
            size += len(piece)
print(json.dumps({
    "seconds": round(time.monotonic() - began, 1),
    "bytes": size,
    "cpu_seconds": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 1),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
}))
"""


def _months(connection: psycopg.Connection[Any]) -> list[date]:
    rows = connection.execute(
        "SELECT DISTINCT date_trunc('month', happened_at, 'UTC')::date FROM charge ORDER BY 1"
    )
    return [row[0] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sublet-focus-"))
    server = Postgres(
        folder / "postgres", settings={"max_wal_size": "8GB", "shared_buffers": "512MB"}
    )
    try:
        server.start()
        # Of a hundred transfers, 43 are charges of three lines and five of one: 1.35 rows each.
        fill(server.url, round(given.rows / 1.373), tenants=given.tenants, sealed=False,
             show=lambda text: print(text, file=sys.stderr, flush=True))  # fmt: skip
        with psycopg.connect(server.url) as connection:
            months = _months(connection)
            row = connection.execute("SELECT sum(cardinality(price_ids)) FROM charge").fetchone()
        assert row is not None
        found: dict[str, Any] = {"rows": int(row[0]), "load": round(os.getloadavg()[0], 1)}
        for form in ("parquet", "csv"):
            ran = subprocess.run(
                [sys.executable, "-c", _EXPORT, server.url, form, *map(str, months)],
                env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            found |= {f"{form}_{name}": value for name, value in json.loads(ran.stdout).items()}
            found[f"{form}_rows_per_s"] = round(found["rows"] / found[f"{form}_seconds"])
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
