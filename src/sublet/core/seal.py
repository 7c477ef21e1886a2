"""Sealing what was recorded: a chain of hashes over the tables of record.

Each seal covers a run of rows of one table, and names the seal before it by its hash. An
edited, removed or slipped-in row no longer gives its seal's hash; a removed seal breaks the
chain. Only what came after the newest seal is not covered yet, and the hash of that seal, the
head, stands for everything before it: whoever keeps the head elsewhere can prove the past.

Rows are hashed as PostgreSQL sends them in its binary format, which says the same in every
session and is a third of the work of writing them as text.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg import sql

from sublet.core.audit import Findings
from sublet.core.db import Database, Tx

LAW: Final = "past_stands"
# Each table of record, and the column that orders its rows.
TABLES: Final = {
    "asset_change": "record",
    "asset_lot": "record",
    "batch_end": "record",
    "budget_alert": "record",
    "charge": "record",
    "coming_capacity": "record",
    "contract_break": "record",
    "contract_delivery": "record",
    "credit": "record",
    "dunning_event": "record",
    "exchange_rate": "record",
    "floor_exception": "record",
    "idempotency_key": "record",
    "internal_job_event": "record",
    "invoice": "record",
    "invoice_event": "record",
    "lease_event": "record",
    "notice_scale": "id",
    "person_change": "record",
    "pool_cost": "id",
    "pool_event": "sequence",
    "price": "id",
    "purchase": "record",
    "supplier_price": "id",
    "tagging": "record",
    "tax_rate": "record",
    "transfer": "sequence",
    "tuning_checkpoint": "record",
    "usage": "record",
}
_MOST_ROWS: Final = 10_000  # of one seal: they are hashed in the database's memory
# Of small seals so many are looked at in one go, and of large ones so many rows.
_MOST_SEALS, _MANY_ROWS = 1_000, 40_000
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """How far a table may be sealed, once these have ended."""

    last: int
    writers: frozenset[str]  # transactions, as pg_locks calls them


class Sealer:
    """Seals what was recorded, a run of rows at a time, and makes nobody wait.

    Numbers are given before their transactions commit, so a lower one may come later: to seal
    past it would lose it. So `look` notes the newest row there is, and who writes to the table
    at that moment: whoever was given a lower number is among them, because an insert locks its
    table before it takes its number and lets go after its commit can be seen. `step` seals up to
    that row when all of them have ended.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._marks: dict[str, _Mark] = {}

    @property
    def waiting(self) -> list[str]:
        """The tables that are not sealed up to where they stood at the last look."""
        return list(self._marks)

    def look(self) -> None:
        """Note how far to seal. Of a table that still waits the older mark is kept.

        Raises:
            Unavailable: the database did not answer.
        """
        with self._db.transaction() as tx:
            newest = _newest(tx, [table for table in TABLES if table not in self._marks])
            writers = _writers(tx, newest)  # after the newest rows: see above
        for table, last in newest.items():
            self._marks[table] = _Mark(last=last, writers=writers.get(table, frozenset()))

    def step(self, *, now: datetime) -> int:
        """Seal one run of rows of one table; return how many, 0 when none may be sealed now.

        Raises:
            Unavailable: the database did not answer; what was sealed before it stands.
        """
        for table, mark in list(self._marks.items()):
            with self._db.transaction() as tx:
                if mark.writers and mark.writers & _writers(tx, [table]).get(table, frozenset()):
                    continue
                rows = _seal_next(tx, table, up_to=mark.last, now=now)
            if rows < _MOST_ROWS:
                del self._marks[table]
            if rows:
                return rows
        return 0


def seal_all(db: Database, *, now: datetime) -> int:
    """Seal every row that can be sealed now; return how many rows.

    What stands beside rows that somebody is still writing is left for the next time.

    Raises:
        Unavailable: the database did not answer; what was sealed before it stands.
    """
    sealer = Sealer(db)
    sealer.look()
    sealed = 0
    while rows := sealer.step(now=now):
        sealed += rows
    return sealed


def audit(tx: Tx, findings: Findings, *, reach: Callable[[float], None] = lambda _: None) -> None:
    """Check every seal against the rows it covers, and the chain from its start.

    Args:
        tx: reads one unmoving view.
        findings: grows.
        reach: is told how much is done, from 0 to 1.
    """
    covered = max(1, _count_sealed(tx))
    previous, expected, rows = _START, 1, 0
    ends: dict[str, int] = {}
    for batch in _batches(_seals(tx)):
        found: dict[int, bytes] = {}
        for seals in _by_table(batch):
            found |= _digests(tx, seals)
        for seal in batch:
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
            digest = found.get(seal.number)
            findings.check(
                digest is not None and _chain(previous, seal, digest) == seal.hash,
                LAW,
                f"seal {seal.number}: rows {seal.first}…{seal.last} of {seal.table_name} are not"
                " what they were when they were sealed",
            )
            expected, previous = seal.number + 1, seal.hash
            ends[seal.table_name] = seal.last
            rows += seal.rows
        reach(rows / covered)
    findings.count(LAW, "seals", expected - 1)
    findings.count(LAW, "sealed_rows", rows)
    findings.notes["seal_head"] = previous.hex()


def _count_sealed(tx: Tx) -> int:
    """Return how many rows all seals together say that they cover."""
    row = tx.execute("SELECT coalesce(sum(rows), 0)::bigint AS rows FROM seal").fetchone()
    assert row is not None
    return int(row["rows"])


def _newest(tx: Tx, tables: Iterable[str]) -> dict[str, int]:
    """Return {table: its newest row}, without those that have none."""
    looks = [
        sql.SQL("SELECT {name} AS name, max({order}) AS last FROM {table}").format(
            name=sql.Literal(table),
            order=sql.Identifier(TABLES[table]),
            table=sql.Identifier(table),
        )
        for table in tables
    ]
    if not looks:
        return {}
    found = tx.execute(sql.SQL(" UNION ALL ").join(looks)).fetchall()
    return {row["name"]: row["last"] for row in found if row["last"] is not None}


def _writers(tx: Tx, tables: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return {table: the transactions that have written to it and not ended}."""
    found = tx.execute(
        "SELECT c.relname AS name, array_agg(l.virtualtransaction) AS writers"
        "  FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted"
        "   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        "   AND l.relation IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)"
        " GROUP BY c.relname",
        [list(tables)],
    ).fetchall()
    return {row["name"]: frozenset(row["writers"]) for row in found}


def _seal_next(tx: Tx, table: str, *, up_to: int, now: datetime) -> int:
    order = TABLES[table]
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
    digest = _digests(tx, [unhashed])[unhashed.number]
    tx.execute(
        "INSERT INTO seal (number, table_name, columns, first, last, rows, hash, sealed_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [
            unhashed.number, table, unhashed.columns, unhashed.first, unhashed.last,
            unhashed.rows, _chain(previous, unhashed, digest), now,
        ],
    )  # fmt: skip
    return unhashed.rows


def _digests(tx: Tx, seals: Sequence[Seal]) -> dict[int, bytes]:
    """Return {number: hash of the rows that stand behind a seal now}, of seals of one table.

    A seal is not in it when there are more or fewer rows than it covers, or when what it says
    of itself cannot be.
    """
    table, columns = seals[0].table_name, seals[0].columns
    sane = [seal for seal in seals if 0 < seal.rows <= _MOST_ROWS]
    if not sane or table not in TABLES or not {*columns} <= {*_columns(tx, table)}:
        return {}
    found = tx.execute(
        sql.SQL(
            "SELECT s.number, run.rows, run.hash"
            "  FROM unnest(%(numbers)s::bigint[], %(firsts)s::bigint[], %(lasts)s::bigint[],"
            "              %(rows)s::bigint[]) AS s(number, first, last, rows),"
            "       LATERAL (SELECT count(*) AS rows,"
            "                       sha256(string_agg(record, ''::bytea ORDER BY number)) AS hash"
            "                  FROM (SELECT {order} AS number, record_send(ROW({columns})) AS record"
            "                          FROM {table} WHERE {order} BETWEEN s.first AND s.last"
            "                         ORDER BY {order} LIMIT s.rows + 1) AS of_run) AS run"
        ).format(
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
            table=sql.Identifier(table),
            order=sql.Identifier(TABLES[table]),
        ),
        {
            "numbers": [seal.number for seal in sane],
            "firsts": [seal.first for seal in sane],
            "lasts": [seal.last for seal in sane],
            "rows": [seal.rows for seal in sane],
        },
    ).fetchall()
    rows = {seal.number: seal.rows for seal in sane}
    return {row["number"]: row["hash"] for row in found if row["rows"] == rows[row["number"]]}


def _batches(seals: Iterator[Seal]) -> Iterator[list[Seal]]:
    """Cut the chain into pieces that are worth a question each."""
    batch: list[Seal] = []
    rows = 0
    for seal in seals:
        batch.append(seal)
        rows += seal.rows
        if len(batch) == _MOST_SEALS or rows >= _MANY_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _by_table(seals: Iterable[Seal]) -> Iterable[list[Seal]]:
    groups: dict[tuple[str, ...], list[Seal]] = {}
    for seal in seals:
        groups.setdefault((seal.table_name, *seal.columns), []).append(seal)
    return groups.values()


def _chain(previous: bytes, seal: Seal, digest: bytes) -> bytes:
    head = (
        f"{seal.number} {seal.table_name} {','.join(seal.columns)}"
        f" {seal.first} {seal.last} {seal.rows}"
    )
    return hashlib.sha256(previous + head.encode() + digest).digest()


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
        rows = tx.execute(
            "SELECT number, table_name, columns, first, last, rows, hash FROM seal"
            " WHERE number > %s ORDER BY number LIMIT 1000",
            [after],
        ).fetchall()
        if not rows:
            return
        for row in rows:
            yield Seal(**row)
        after = rows[-1]["number"]
