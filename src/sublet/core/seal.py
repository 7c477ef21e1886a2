"""Sealing what was recorded: a chain of hashes over the tables of record.

Each seal covers a run of rows of one table, and names the seal before it by its hash. An
edited, removed or slipped-in row no longer gives its seal's hash; a removed seal breaks the
chain. Only what came after the newest seal is not covered yet, and the hash of that seal, the
head, stands for everything before it: whoever keeps the head elsewhere can prove the past.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import sql

from sublet.core.audit import Findings
from sublet.core.db import Database, Tx

LAW: Final = "past_stands"
# Each table of record, and the column that orders its rows.
TABLES: Final = {
    "charge": "record",
    "idempotency_key": "record",
    "internal_job_event": "record",
    "lease_event": "record",
    "pool_event": "sequence",
    "price": "id",
    "transfer": "sequence",
    "usage": "record",
}
_MOST_ROWS: Final = 10_000  # of one seal: they are hashed in the database's memory
_START: Final = hashlib.sha256(b"sublet").digest()
# Two control planes may overlap for a moment; the chain has one end.
_LOCK: Final = 7_355_608_003


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    number: int
    table_name: str
    columns: list[str]
    first: int
    last: int
    rows: int
    hash: bytes


def seal_all(db: Database, *, now: datetime) -> int:
    """Seal every row that was recorded since the last time; return how many rows.

    Raises:
        Unavailable: the database did not answer; what was sealed before it stands.
    """
    sealed = 0
    for table, order in TABLES.items():
        with db.transaction() as tx:
            last = _last_committed(tx, table, order)
        while True:
            with db.transaction() as tx:
                rows = _seal_next(tx, table, order, up_to=last, now=now)
            sealed += rows
            if rows < _MOST_ROWS:
                break
    return sealed


def audit(tx: Tx, findings: Findings) -> None:
    """Check every seal against the rows it covers, and the chain from its start."""
    previous, expected, rows = _START, 1, 0
    ends: dict[str, int] = {}
    for seal in _seals(tx):
        findings.check(
            seal.number == expected,
            LAW,
            f"seal {expected} is missing: the next is {seal.number}",
        )
        findings.check(
            seal.first > ends.get(seal.table_name, 0),
            LAW,
            f"seal {seal.number} covers rows of {seal.table_name} that another one covers",
        )
        findings.check(
            _hash(tx, previous, seal) == seal.hash,
            LAW,
            f"seal {seal.number}: rows {seal.first}…{seal.last} of {seal.table_name} are not"
            " what they were when they were sealed",
        )
        expected, previous = seal.number + 1, seal.hash
        ends[seal.table_name] = seal.last
        rows += seal.rows
    findings.count(LAW, "seals", expected - 1)
    findings.count(LAW, "sealed_rows", rows)
    findings.notes["seal_head"] = previous.hex()


def _last_committed(tx: Tx, table: str, order: str) -> int:
    """Return the newest row up to which none can come any more.

    Numbers are given before their transactions commit, so a lower one may come later. The
    lock waits for those that are under way, and keeps others out for the length of one look.
    """
    names = {"table": sql.Identifier(table), "order": sql.Identifier(order)}
    tx.execute("SET LOCAL lock_timeout = '2s'")  # nobody's money waits longer for our look
    tx.execute(sql.SQL("LOCK TABLE {table} IN SHARE MODE").format(**names))
    row = tx.execute(
        sql.SQL("SELECT coalesce(max({order}), 0) AS last FROM {table}").format(**names)
    ).fetchone()
    assert row is not None
    return int(row["last"])


def _seal_next(tx: Tx, table: str, order: str, *, up_to: int, now: datetime) -> int:
    tx.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    newest = tx.execute("SELECT number, hash FROM seal ORDER BY number DESC LIMIT 1").fetchone()
    number, previous = (0, _START) if newest is None else (newest["number"], newest["hash"])
    done = tx.execute(
        "SELECT coalesce(max(last), 0) AS last FROM seal WHERE table_name = %s", [table]
    ).fetchone()
    assert done is not None
    run = tx.execute(
        sql.SQL(
            "SELECT min(number) AS first, max(number) AS last, count(*) AS rows FROM ("
            " SELECT {order} AS number FROM {table}"
            " WHERE {order} > %(done)s AND {order} <= %(up_to)s ORDER BY {order} LIMIT %(most)s"
            ") AS run"
        ).format(table=sql.Identifier(table), order=sql.Identifier(order)),
        {"done": done["last"], "up_to": up_to, "most": _MOST_ROWS},
    ).fetchone()
    assert run is not None
    if not run["rows"]:
        return 0
    unhashed = Seal(
        number=number + 1,
        table_name=table,
        columns=_columns(tx, table),
        first=run["first"],
        last=run["last"],
        rows=run["rows"],
        hash=b"",
    )
    tx.execute(
        "INSERT INTO seal (number, table_name, columns, first, last, rows, hash, sealed_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [
            unhashed.number, table, unhashed.columns, unhashed.first, unhashed.last,
            unhashed.rows, _hash(tx, previous, unhashed), now,
        ],
    )  # fmt: skip
    return unhashed.rows


def _hash(tx: Tx, previous: bytes, seal: Seal) -> bytes:
    """Return the hash of what stands behind `seal` now; b"" where rows are missing or too many."""
    if seal.table_name not in TABLES:
        return b""
    _fix_text(tx)
    row = tx.execute(
        sql.SQL(
            "SELECT count(*) AS rows, sha256(convert_to(coalesce(string_agg("
            "jsonb_build_array({columns})::text, E'\\n' ORDER BY {order}), ''), 'UTF8')) AS hash"
            " FROM {table} WHERE {order} BETWEEN %(first)s AND %(last)s"
        ).format(
            columns=sql.SQL(", ").join(map(sql.Identifier, seal.columns)),
            table=sql.Identifier(seal.table_name),
            order=sql.Identifier(TABLES[seal.table_name]),
        ),
        {"first": seal.first, "last": seal.last},
    ).fetchone()
    assert row is not None
    if row["rows"] != seal.rows:
        return b""
    head = (
        f"{seal.number} {seal.table_name} {','.join(seal.columns)}"
        f" {seal.first} {seal.last} {row['rows']}"
    )
    return hashlib.sha256(previous + head.encode() + row["hash"]).digest()


def _fix_text(tx: Tx) -> None:
    """Let the rows be written the same way in every session."""
    tx.execute("SET LOCAL TimeZone = 'UTC'")
    tx.execute("SET LOCAL DateStyle = 'ISO'")
    tx.execute("SET LOCAL bytea_output = 'hex'")


def _columns(tx: Tx, table: str) -> list[str]:
    rows = tx.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s)"
        " AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    return [row["attname"] for row in rows]


def _seals(tx: Tx) -> Iterator[Seal]:
    """Read the chain in order, some at a time."""
    after = 0
    while True:
        rows: list[dict[str, Any]] = tx.execute(
            "SELECT number, table_name, columns, first, last, rows, hash FROM seal"
            " WHERE number > %s ORDER BY number LIMIT 1000",
            [after],
        ).fetchall()
        if not rows:
            return
        for row in rows:
            yield Seal(**row)
        after = rows[-1]["number"]
