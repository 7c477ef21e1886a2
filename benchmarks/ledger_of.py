"""Fill a PostgreSQL with a Sublet's past: N transfers, and all that belongs to them.

    python benchmarks/ledger_of.py postgresql://… --transfers 1000000

It is a past that could have been: tenants with wallets, one of them in every fifth request;
holds that are posted, voided and expired, some posts that pay for several uses; leases on 64
GPUs, paid by the minute, beside internal jobs; usages, charges, prices, seals. `sublet verify`
finds nothing wrong with it. Written by the database itself, a chunk at a time, in time order,
as the gateways would have; only foreign keys are not looked up meanwhile.
"""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src")]

from sublet.core.clock import SystemClock  # noqa: E402
from sublet.core.db import Database  # noqa: E402
from sublet.core.migrations import migrate  # noqa: E402
from sublet.core.seal import seal_all  # noqa: E402

TENANTS: Final = 1_000
# Of every hundred transfers so many are of leases; a lease of ten minutes makes twenty.
_LEASES_PER_TRANSFER: Final = 0.1 / 20
_LANES, _JOB_LANES = 52, 8  # GPUs of 64 that leases and internal jobs use, one each at a time
_CHUNK: Final = 100_000  # requests

# Ids as `new_id` makes them: milliseconds, then what tells them apart. What belongs together
# differs in one byte, so that it is found again: 1 a resolution, 2 a use, 3 a lease.
_SETUP: Final = """
CREATE FUNCTION pg_temp.made_id(at timestamptz, kind int, n bigint) RETURNS uuid
LANGUAGE sql IMMUTABLE AS $$
    SELECT (encode(int8send(((extract(epoch FROM at) * 1000)::bigint << 16) | 28672 | (kind / 16)), 'hex')
         || encode(int8send((-9223372036854775808) | ((kind % 16)::bigint << 48) | n), 'hex'))::uuid
$$;
-- Who asks: tenant 0 in every fifth request, the others by turns.
CREATE FUNCTION pg_temp.tenant_of(i bigint, tenants int) RETURNS int
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN i % 5 = 0 OR tenants = 1 THEN 0 ELSE 1 + (i * 7919 % (tenants - 1))::int END
$$;
CREATE TEMP TABLE who (n int PRIMARY KEY, tenant_id uuid, key_id uuid, wallet bigint, revenue bigint);
CREATE TEMP TABLE staged (
    i bigint, u int, ord bigint, tenant_id uuid, key_id uuid, wallet bigint, revenue bigint, how text,
    at timestamptz, hold_id uuid, usage_id uuid, q1 bigint, q2 bigint, q3 bigint,
    a1 numeric, a2 numeric, a3 numeric
);
"""

_WORLD: Final = """
INSERT INTO tenant (id, name, kind, created_at)
SELECT pg_temp.made_id(%(start)s, 4, n), 'tenant ' || n, 'customer', %(start)s
  FROM generate_series(0, %(tenants)s - 1) AS n;
INSERT INTO api_key (id, tenant_id, role, name, digest, hint, created_at)
SELECT pg_temp.made_id(%(start)s, 5, n), pg_temp.made_id(%(start)s, 4, n), 'tenant', 'first',
       sha256(convert_to('no key has this digest ' || n, 'UTF8')), 'sk-sublet-', %(start)s
  FROM generate_series(0, %(tenants)s - 1) AS n;
INSERT INTO account (code, currency, prepaid) VALUES ('house:bank', 'USD', false)
    ON CONFLICT DO NOTHING;
INSERT INTO account (code, currency, prepaid)
SELECT 'tenant:' || pg_temp.made_id(%(start)s, 4, n) || side.code, 'USD', side.prepaid
  FROM generate_series(0, %(tenants)s - 1) AS n,
       (VALUES (':wallet', true), (':revenue', false)) AS side(code, prepaid);
INSERT INTO who
SELECT n, t.id, pg_temp.made_id(%(start)s, 5, n), w.id, r.id
  FROM generate_series(0, %(tenants)s - 1) AS n
  JOIN tenant t ON t.id = pg_temp.made_id(%(start)s, 4, n)
  JOIN account w ON w.code = 'tenant:' || t.id || ':wallet'
  JOIN account r ON r.code = 'tenant:' || t.id || ':revenue';
INSERT INTO transfer (id, kind, debit_account, credit_account, amount_nanos, reason, happened_at, recorded_at)
SELECT pg_temp.made_id(%(start)s, 6, who.n), 'posted', bank.id, who.wallet, 1000000000000, 'payment',
       %(start)s, %(start)s
  FROM who, account bank WHERE bank.code = 'house:bank' ORDER BY who.n;
INSERT INTO price (sku, nanos, per, currency, happened_at, recorded_at)
SELECT sku, nanos, per, 'USD', %(start)s, %(start)s
  FROM (VALUES ('model:past:input', 150, 1), ('model:past:cache_read', 7, 3),
               ('model:past:output', 601, 3), ('lease:past:interruptible', 1200000000, 3600)
       ) AS first(sku, nanos, per);
INSERT INTO pool (name, gpus, notice_seconds, lendable) VALUES ('past', 64, 10, false);
INSERT INTO pool_event (pool, gpus, notice_seconds, happened_at, recorded_at)
VALUES ('past', 64, 10, %(start)s, %(start)s);
"""

# Requests `from` to `to`: of twenty, one is a hand-over of five uses, two are voided, one
# expires. A hold is resolved fifty requests later.
_STAGE: Final = """
INSERT INTO staged
SELECT i, u, i, who.tenant_id, who.key_id, who.wallet, who.revenue, how, at,
       pg_temp.made_id(at, 0, i * 8), pg_temp.made_id(at, 2, i * 8 + u),
       q1, q2, q3, q1 * 150, round(q2 * 7 / 3.0), round(q3 * 601 / 3.0)
  FROM generate_series(%(from)s::bigint, %(to)s::bigint) AS i
  CROSS JOIN LATERAL (SELECT CASE i %% 20 WHEN 0 THEN 'many' WHEN 1 THEN 'void' WHEN 2 THEN 'void'
                             WHEN 3 THEN 'expire' ELSE 'one' END AS how,
                        %(start)s::timestamptz + i * %(step)s::interval AS at) AS x
  CROSS JOIN LATERAL generate_series(0, CASE how WHEN 'many' THEN 4 ELSE 0 END) AS u
  CROSS JOIN LATERAL (SELECT 20 + (i + u) %% 900 AS q1, (i * 3 + u) %% 300 AS q2, 1 + (i * 7 + u) %% 400 AS q3) AS q
  JOIN who ON who.n = pg_temp.tenant_of(i, %(tenants)s);
"""
_RECORD: Final = """
INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
                      expires_at, happened_at, recorded_at)
SELECT id, kind, pending_id, wallet, revenue, amount, 'tokens', expires_at, at, at
  FROM (SELECT i AS place, 0 AS part, hold_id AS id, 'pending' AS kind, null::uuid AS pending_id,
               wallet, revenue, 2000000::numeric AS amount, at + interval '15 minutes' AS expires_at, at
          FROM staged WHERE u = 0
         UNION ALL
        SELECT i + 50, 1, pg_temp.made_id(at, 1, i * 8),
               CASE WHEN how IN ('void', 'expire') THEN how ELSE 'post' END, hold_id, wallet, revenue,
               CASE WHEN how IN ('void', 'expire') THEN 0 ELSE sum(a1 + a2 + a3) END,
               null, at + interval '2 seconds'
          FROM staged GROUP BY i, at, how, hold_id, wallet, revenue) AS both_ends
 ORDER BY place, part;
INSERT INTO usage (id, source, sequence, tenant_id, api_key_id, model, request_id, input_tokens,
                   cache_read_tokens, output_tokens, delivered_tokens, outcome, happened_at, recorded_at)
SELECT usage_id, 'gateway:past', row_number() OVER (ORDER BY i, u) + %(used)s, tenant_id, key_id,
       'past', 'req_' || replace(usage_id::text, '-', ''), q1, q2, q3, q3, 'completed', at,
       at + interval '2 seconds'
  FROM staged WHERE how IN ('one', 'many') ORDER BY i, u;
INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos, transfer_id,
                    happened_at, recorded_at)
SELECT usage_id, tenant_id, ARRAY[%(input)s, %(cache_read)s, %(output)s]::bigint[], ARRAY[q1, q2, q3],
       ARRAY[a1, a2, a3], a1 + a2 + a3, pg_temp.made_id(at, 1, i * 8), at, at + interval '2 seconds'
  FROM staged WHERE how IN ('one', 'many') ORDER BY i, u;
"""

# Leases `from` to `to`, one after another in so many lanes, eleven minutes apart. A minute is
# held twenty seconds before it begins and settled when it is over. Those of the last round
# still run: they have settled nine minutes and hold the tenth.
_LEASES: Final = """
CREATE TEMP TABLE lane ON COMMIT DROP AS
SELECT j, pg_temp.made_id(at, 3, j) AS id, at, who.tenant_id, who.wallet, who.revenue,
       j >= %(running_from)s AS running
  FROM generate_series(%(from)s::bigint, %(to)s::bigint) AS j
  CROSS JOIN LATERAL (SELECT %(start)s::timestamptz + j / %(lanes)s * %(round)s::interval AS at) AS x
  JOIN who ON who.n = j %% %(tenants)s;
INSERT INTO lease (id, tenant_id, pool, gpus, tier, notice_seconds, price_id, workload, max_seconds,
                   requested_at, state, since, version, end_reason, running_at, stopped_at, ends_at,
                   paid_until, exit_code)
SELECT id, tenant_id, 'past', 1, 'interruptible', 10, %(lease)s,
       '{"command": ["python", "train.py"], "environment": {}, "files": {}, "network": false}', 600, at,
       CASE WHEN running THEN 'running' ELSE 'ended' END,
       CASE WHEN running THEN at + interval '3 s' ELSE at + interval '605 s' END,
       CASE WHEN running THEN 4 ELSE 6 END, CASE WHEN NOT running THEN 'expired' END,
       at + interval '3 s', CASE WHEN NOT running THEN at + interval '603 s' END, at + interval '603 s',
       at + interval '603 s', CASE WHEN NOT running THEN 0 END
  FROM lane ORDER BY j;
INSERT INTO lease_event (lease_id, version, state, reason, happened_at, recorded_at)
SELECT id, version, state, CASE WHEN version > 4 THEN 'expired' END,
       at + after, at + after
  FROM lane, (VALUES (1, 'requested', interval '0'), (2, 'admitted', '1 s'), (3, 'provisioning', '2 s'),
                     (4, 'running', '3 s'), (5, 'draining', '603 s'), (6, 'ended', '605 s'))
             AS move(version, state, after)
 WHERE NOT running OR version <= 4
 ORDER BY at + after, j;
CREATE TEMP TABLE minute ON COMMIT DROP AS
SELECT j, id AS lease_id, block, tenant_id, wallet, revenue, running AND block = 9 AS open,
       at + interval '3 s' + block * interval '1 minute' AS at,
       pg_temp.made_id(at, 7, j * 16 + block) AS hold_id, pg_temp.made_id(at, 8, j * 16 + block) AS post_id,
       pg_temp.made_id(at, 9, j * 16 + block) AS usage_id
  FROM lane, generate_series(0, 9) AS block;
INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
                      expires_at, happened_at, recorded_at)
SELECT id, kind, pending_id, wallet, revenue, 20000000, 'lease', expires_at, at, at
  FROM (SELECT j, hold_id AS id, 'pending' AS kind, null::uuid AS pending_id, wallet, revenue,
               %(start)s::timestamptz + interval '100 years' AS expires_at, at - interval '20 s' AS at FROM minute
         UNION ALL
        SELECT j, post_id, 'post', hold_id, wallet, revenue, null, at + interval '1 minute'
          FROM minute WHERE NOT open) AS both_ends
 ORDER BY at, j;
INSERT INTO lease_block (lease_id, block, hold_id, settled) SELECT lease_id, block, hold_id, NOT open FROM minute;
INSERT INTO open_hold (transfer_id, holder, expires_at)
SELECT hold_id, 'lease:' || lease_id, %(start)s::timestamptz + interval '100 years' FROM minute WHERE open;
INSERT INTO usage (id, source, sequence, tenant_id, lease_id, gpu_seconds, outcome, happened_at, recorded_at)
SELECT usage_id, 'lease:' || lease_id, block, tenant_id, lease_id, 60, 'completed', at + interval '1 minute',
       at + interval '1 minute'
  FROM minute WHERE NOT open ORDER BY at, j;
INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos, transfer_id,
                    happened_at, recorded_at)
SELECT usage_id, tenant_id, ARRAY[%(lease)s]::bigint[], ARRAY[60]::bigint[], ARRAY[20000000]::numeric[], 20000000, post_id,
       at + interval '1 minute', at + interval '1 minute'
  FROM minute WHERE NOT open ORDER BY at, j;
INSERT INTO internal_job_event (job_id, event, pool, gpus, name, happened_at, recorded_at)
SELECT pg_temp.made_id(at, 10, j), event, 'past', 1, 'training', at + after, at + after
  FROM lane, (VALUES ('submitted', interval '0'), ('started', '1 s'), ('ended', '590 s')) AS e(event, after)
 WHERE j %% %(lanes)s < %(job_lanes)s AND NOT running;
"""

# What the accounts must say is what their transfers say.
_BALANCES: Final = """
UPDATE account a
   SET debits_pending = a.debits_pending + s.debits_pending, debits_posted = a.debits_posted + s.debits_posted,
       credits_pending = a.credits_pending + s.credits_pending, credits_posted = a.credits_posted + s.credits_posted
  FROM (SELECT account,
               coalesce(sum(pending) FILTER (WHERE debit), 0) AS debits_pending,
               coalesce(sum(posted)  FILTER (WHERE debit), 0) AS debits_posted,
               coalesce(sum(pending) FILTER (WHERE NOT debit), 0) AS credits_pending,
               coalesce(sum(posted)  FILTER (WHERE NOT debit), 0) AS credits_posted
          FROM (SELECT debit_account AS account, true AS debit, pending, posted FROM moved
                 UNION ALL SELECT credit_account, false, pending, posted FROM moved) AS sides
         GROUP BY account) AS s
 WHERE a.id = s.account;
"""
_MOVED: Final = """
CREATE TEMP TABLE moved ON COMMIT DROP AS
SELECT t.debit_account, t.credit_account,
       sum(CASE WHEN o.transfer_id IS NOT NULL THEN t.amount_nanos ELSE 0 END) AS pending,
       sum(CASE WHEN t.kind IN ('posted', 'post') THEN t.amount_nanos ELSE 0 END) AS posted
  FROM transfer t LEFT JOIN open_hold o ON o.transfer_id = t.id
 WHERE t.sequence > %(before)s
 GROUP BY t.debit_account, t.credit_account;
"""


def fill(
    url: str,
    transfers: int = 10_000_000,
    *,
    tenants: int = TENANTS,
    sealed: bool = True,
    vacuum: bool = True,
    show: Callable[[str], None] = lambda _: None,
) -> None:
    """Add a past of about so many transfers to the database, which is migrated first.

    Args:
        url: of a database whose superuser we are, because foreign keys are not looked up. It
            may hold tenants and money already, but no such past, and nobody may use it meanwhile.
        transfers: how many, within a thousandth.
        tenants: how many tenants share them.
        sealed: whether it is sealed as well.
        vacuum: whether it is then tidied up, as by autovacuum in the course of time.
        show: is told what was done, every few seconds.
    """
    clock = SystemClock()
    leases = max(_LANES, round(transfers * _LEASES_PER_TRANSFER) // _LANES * _LANES)
    requests = max(0, transfers - leases * 20 - tenants) // 2
    rounds = leases // _LANES
    apart = timedelta(minutes=11)
    end = datetime.now(UTC)
    start = (end - rounds * apart).replace(microsecond=0)
    chunks = max(1, -(-requests // _CHUNK))
    step = (end - start - timedelta(minutes=1)) / max(requests, 1)
    with Database(url) as db, psycopg.connect(url) as connection:
        migrate(db, clock=clock)
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET work_mem = '256MB'")
        connection.execute(_SETUP)
        before = _one(connection, "SELECT coalesce(max(sequence), 0) FROM transfer")
        run: dict[str, Any] = {
            "start": start, "tenants": tenants, "step": step, "round": apart, "lanes": _LANES,
            "job_lanes": _JOB_LANES, "running_from": leases - _LANES, "used": 0,
        }  # fmt: skip
        _all(connection, _WORLD, run)
        run |= {
            name: _one(connection, f"SELECT id FROM price WHERE sku = 'model:past:{name}'")  # noqa: S608
            for name in ("input", "cache_read", "output")
        }
        run["lease"] = _one(connection, "SELECT id FROM price WHERE sku LIKE 'lease:past:%'")
        connection.commit()
        began = time.monotonic()
        for chunk in range(chunks):
            run["from"], run["to"] = leases * chunk // chunks, leases * (chunk + 1) // chunks - 1
            _all(connection, _LEASES, run)
            run["from"] = requests * chunk // chunks
            run["to"] = requests * (chunk + 1) // chunks - 1
            connection.execute("TRUNCATE staged")
            connection.execute(_STAGE, run)
            connection.execute("ANALYZE staged")
            _all(connection, _RECORD, run)
            run["used"] = _one(
                connection, "SELECT max(sequence) FROM usage WHERE source = 'gateway:past'"
            )
            connection.commit()
            if sealed:
                seal_all(db, now=datetime.now(UTC))
            show(f"{(chunk + 1) / chunks:.0%} after {time.monotonic() - began:.0f} s")
        connection.execute(_MOVED, {"before": before})
        connection.execute(_BALANCES)
        connection.commit()
    if vacuum:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
    show(f"done after {time.monotonic() - began:.0f} s")


def _all(connection: psycopg.Connection[Any], statements: str, run: dict[str, Any]) -> None:
    """Run several statements, each with what it needs of `run`."""
    for statement in statements.split(";\n"):
        if statement.strip():
            connection.execute(statement.encode(), run)


def _one(connection: psycopg.Connection[Any], query: str, run: Any = None) -> Any:
    row = connection.execute(query.encode(), run).fetchone()
    assert row is not None, query
    return row[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of an empty database")
    parser.add_argument("--transfers", type=int, default=10_000_000)
    given = parser.parse_args()
    fill(given.url, given.transfers, show=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
