"""The register in the database, and what the records of all rooms say of a period."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from psycopg.types.json import Json
from pydantic_core import to_jsonable_python

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Invalid
from sublet.core.money import Money
from sublet.finance.asset import (
    Change,
    Curve,
    Debt,
    Kind,
    Lot,
    Method,
    check_changes,
    month_of,
)
from sublet.finance.record import MODEL, Earned, Hours, Record

QUERIES = load_queries("sublet.finance")
_STATEMENTS = {
    "lot": (QUERIES["insert_lot"], QUERIES["get_lot"]),
    "change": (QUERIES["insert_change"], QUERIES["get_change"]),
}


def add(tx: Tx, lots: list[Lot], changes: list[Change], *, now: datetime) -> tuple[int, int]:
    """Add what is new to the register; what is there already, with the same contents, stays.

    Returns:
        how many lots and how many changes were new.

    Raises:
        Invalid: a lot or a change is there with other contents, or a change does not fit its lot.
    """
    new_lots = 0
    for lot in lots:
        named = {"name": lot.name, "happened_at": _midnight(lot.bought_on)}
        new_lots += _insert(tx, "lot", named, _lot_document(lot), now)
    known = {lot.name: lot for lot in list_lots(tx)}
    check_changes(known, changes)
    new_changes = 0
    for change in changes:
        month = month_of(change.effective_on)
        key = {"lot": change.lot, "effective_on": month, "happened_at": _midnight(month)}
        new_changes += _insert(tx, "change", key, _change_document(change), now)
    check_changes(known, list_changes(tx))
    return new_lots, new_changes


def list_lots(tx: Tx) -> list[Lot]:
    return [_lot(row["document"]) for row in tx.execute(QUERIES["list_lots"])]


def list_changes(tx: Tx) -> list[Change]:
    return [_change(row["document"]) for row in tx.execute(QUERIES["list_changes"])]


def read_record(tx: Tx, start: date, end: date, *, now: datetime) -> Record:
    """Return what the records say of `[start, end)`; what is still to come is not in it."""
    row = {"start": _midnight(start), "end": min(_midnight(end), now), "now": now}
    if row["start"] >= row["end"]:
        return Record(start=start, end=end)
    hours = [
        Hours(pool=one.pool, day=one.at.astimezone(UTC).date(), healthy=one.healthy / 3600,
              used={use: seconds / 3600 for use, seconds in one.used.items()})
        for one in list_steps(tx, row["start"], row["end"], step=timedelta(days=1), now=now)
    ]  # fmt: skip
    earned, tokens = _money(tx, row)
    return Record(start=start, end=end, hours=hours, earned=earned, tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class UseStep:
    """GPU-seconds of one pool within one step of time."""

    pool: str
    at: datetime  # its start
    healthy: float
    used: Mapping[str, float]  # by use: internal, model, or a lease's tier


def list_steps(
    tx: Tx, start: datetime, end: datetime, *, step: timedelta, now: datetime
) -> list[UseStep]:
    """Return what each pool's GPUs did in `[start, end)`, in steps that begin at multiples of one."""
    row = {"start": start, "end": min(end, now), "now": now, "step": step}
    used: dict[tuple[str, datetime], dict[str, float]] = {}
    for found in tx.execute(QUERIES["list_uses"], row):
        used.setdefault((found["pool"], found["at"]), {})[found["use"]] = found["gpu_seconds"]
    return [
        UseStep(pool=found["pool"], at=found["at"], healthy=found["gpu_seconds"],
                used=used.get((found["pool"], found["at"]), {}))
        for found in tx.execute(QUERIES["list_capacities"], row)
    ]  # fmt: skip


def _money(tx: Tx, row: dict[str, Any]) -> tuple[list[Earned], dict[str, int]]:
    """Return what was earned by pool and product, and tokens by model."""
    seconds: dict[str, dict[str, float]] = {}
    for found in tx.execute(QUERIES["list_replica_seconds"], row):
        seconds.setdefault(found["model"], {})[found["pool"]] = found["gpu_seconds"]
    nanos: dict[tuple[str, str], int] = {}
    tokens: dict[str, int] = {}

    def put(pool: str, product: str, amount: int) -> None:
        nanos[pool, product] = nanos.get((pool, product), 0) + amount

    for found in tx.execute(QUERIES["list_charged"], row):
        amount = int(found["amount_nanos"])
        if found["product"] != MODEL:
            put(found["pool"], found["product"], amount)
            continue
        tokens[found["model"]] = int(found["tokens"])
        left = amount
        pools = sorted(seconds.get(found["model"], {}).items())
        whole = sum(share for _, share in pools)
        for pool, share in pools[:-1]:
            part = round(amount * share / whole)
            put(pool, MODEL, part)
            left -= part
        put(pools[-1][0] if pools else "", MODEL, left)
    for found in tx.execute(QUERIES["list_credited"], row):
        put(found["pool"], found["product"], -int(found["amount_nanos"]))
    for found in tx.execute(QUERIES["list_other_revenue"], row):
        put("", found["reason"], int(found["amount_nanos"]))
    return (
        [Earned(pool=p, product=q, nanos=amount) for (p, q), amount in sorted(nanos.items()) if amount],
        tokens,
    )  # fmt: skip


def _insert(
    tx: Tx, what: str, key: dict[str, Any], document: dict[str, Any], now: datetime
) -> bool:
    if one(tx, QUERIES[f"insert_{what}"], key | {"document": Json(document), "now": now}):
        return True
    found = one(tx, QUERIES[f"get_{what}"], key)
    assert found is not None
    if found["document"] != document:
        name = key.get("name") or f"{key['lot']} on {key['effective_on']}"
        raise Invalid(
            f"{what} {name} is in the register with other contents, and records stand: give a new"
            " lot a name of its own, and change a life by a change"
        )
    return False


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _lot_document(lot: Lot) -> dict[str, Any]:
    document: dict[str, Any] = to_jsonable_python(asdict(lot))
    _drop_no_curve(document)
    return document | {"cost": str(lot.cost.nanos), "salvage": str(lot.salvage.nanos)}


def _lot(document: dict[str, Any]) -> Lot:
    return Lot(
        **document
        | {
            "kind": Kind(document["kind"]),
            "method": Method(document["method"]),
            "bought_on": date.fromisoformat(document["bought_on"]),
            "in_service_on": date.fromisoformat(document["in_service_on"]),
            "cost": Money(int(document["cost"])),
            "salvage": Money(int(document["salvage"])),
            "debt": None if document["debt"] is None else Debt(**document["debt"]),
            "curve": _curve(document),
        }
    )


def _change_document(change: Change) -> dict[str, Any]:
    document: dict[str, Any] = to_jsonable_python(asdict(change))
    _drop_no_curve(document)
    return document | {"salvage": str(change.salvage.nanos)}


def _change(document: dict[str, Any]) -> Change:
    return Change(
        lot=document["lot"],
        effective_on=date.fromisoformat(document["effective_on"]),
        life_months=document["life_months"],
        salvage=Money(int(document["salvage"])),
        curve=_curve(document),
    )


def _drop_no_curve(document: dict[str, Any]) -> None:
    """Write what has no curve as it was written before there were any: it is compared."""
    if document["curve"] is None:
        del document["curve"]


def _curve(document: dict[str, Any]) -> Curve | None:
    found = document.get("curve")
    if found is None:
        return None
    return Curve(
        points=tuple((age, share) for age, share in found["points"]),
        source=found["source"],
        dated=date.fromisoformat(found["dated"]),
    )
