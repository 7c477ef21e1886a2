"""Limits in Postgres, and what budgets have spent and hold. The caller owns the transaction.

A budget is exact across any number of gateways: `hold_budgets` decides under the limit's lock, and
`spend_budgets` turns a hold into what was spent in the transaction that records the usage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import NotFound
from sublet.core.ids import new_id
from sublet.tenants.limit import Limit, LimitBook, LimitKind, Standing, checked_amount
from sublet.tenants.tenant import KeyId, Role, TenantId

QUERIES: Final = load_queries("sublet.tenants")
HOLD: Final = timedelta(minutes=15)  # longer than any request runs


def set_limit(
    tx: Tx,
    tenant_id: TenantId,
    key_id: KeyId | None,
    kind: LimitKind,
    amount: int,
    *,
    by: Role,
    now: datetime,
) -> Limit:
    """Set one limit; a budget that was there keeps what it has spent.

    Raises:
        Invalid: no such amount can be.
        NotFound: no such key of this tenant.
    """
    checked_amount(kind, amount)
    if key_id is not None:
        found = one(tx, QUERIES["find_key_of"], {"id": key_id, "tenant_id": tenant_id})
        if found is None:
            raise NotFound(f"there is no key {key_id} of this tenant")
    row = {
        "id": new_id(), "tenant_id": tenant_id, "api_key_id": key_id, "kind": kind,
        "set_by": by, "amount": amount, "now": now,
    }  # fmt: skip
    made = one(tx, QUERIES["set_limit"], row)
    assert made is not None
    tx.execute(QUERIES["note_limit_change"])
    return _limit(made)


def remove_limit(
    tx: Tx, tenant_id: TenantId, key_id: KeyId | None, kind: LimitKind, *, by: Role
) -> None:
    """Take a limit back, with what a budget has spent.

    Raises:
        NotFound: that role has set no such limit.
    """
    row = {"tenant_id": tenant_id, "api_key_id": key_id, "kind": kind, "set_by": by}
    if one(tx, QUERIES["remove_limit"], row) is None:
        raise NotFound(f"the {by} has set no limit {kind} there")
    tx.execute(QUERIES["note_limit_change"])


def list_limits(tx: Tx, tenant_id: TenantId, *, now: datetime) -> list[tuple[Limit, Standing]]:
    """Return a tenant's limits with how they stand; only budgets have spent anything."""
    rows = tx.execute(QUERIES["list_limits"], {"tenant_id": tenant_id}).fetchall()
    limits = [_limit(row) for row in rows]
    standings = _standings(tx, [limit for limit in limits if limit.kind.is_budget], now=now)
    none = {limit.id: Standing(limit=limit, spent_nanos=0, held_nanos=0) for limit in limits}
    return [(limit, (none | standings)[limit.id]) for limit in limits]


def read_book(tx: Tx, known: LimitBook) -> LimitBook:
    """Return all limits; the very same book when nothing changed since."""
    row = one(tx, QUERIES["get_limit_version"], {})
    assert row is not None
    if row["version"] == known.version:
        return known
    rows = tx.execute(QUERIES["list_all_limits"]).fetchall()
    return LimitBook.read(row["version"], (_limit(row) for row in rows))


# ── budgets ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one request may cost at most, and the budgets that must allow it."""

    usage_id: UUID
    budgets: Sequence[Limit]
    nanos: int


def hold_budgets(
    tx: Tx, asks: Sequence[Ask], *, holder: str, now: datetime
) -> list[Standing | None]:
    """Hold what each asks for in all of its budgets, in order.

    Returns:
        for each None, or the first budget that has not enough left, as it stands then; nothing is
        held for that one.
    """
    budgets = {limit.id: limit for ask in asks for limit in ask.budgets}
    # Not FOR UPDATE: who adds to what was spent refers to these rows, and need not wait.
    locked = tx.execute(QUERIES["lock_limits"], {"ids": sorted(budgets)}).fetchall()
    there = {row["id"]: _limit(row) for row in locked}  # one may have been removed since
    standings = _standings(tx, list(there.values()), now=now)
    held = {id_: one.held_nanos for id_, one in standings.items()}
    answers: list[Standing | None] = []
    rows: list[tuple[UUID, UUID, datetime, int]] = []
    for ask in asks:
        wanted = [there[limit.id] for limit in ask.budgets if limit.id in there]
        short = None
        for limit in wanted:
            now_standing = Standing(
                limit=limit, spent_nanos=standings[limit.id].spent_nanos, held_nanos=held[limit.id]
            )
            if ask.nanos > limit.amount - now_standing.spent_nanos - now_standing.held_nanos:
                short = now_standing
                break
        answers.append(short)
        if short is None:
            for limit in wanted:
                held[limit.id] += ask.nanos
                rows.append((ask.usage_id, limit.id, limit.kind.began(now), ask.nanos))
    if rows:
        tx.execute(
            QUERIES["hold_budgets"],
            {
                "usages": [row[0] for row in rows], "limits": [row[1] for row in rows],
                "starts": [row[2] for row in rows], "nanos": [row[3] for row in rows],
                "holder": holder, "expires_at": now + HOLD,
            },
        )  # fmt: skip
    return answers


def spend_budgets(tx: Tx, used: Mapping[UUID, int]) -> None:
    """Turn the holds of these usages into what they cost, in nanos; those without one are left."""
    if used:
        row = {"ids": list(used), "nanos": list(used.values())}
        tx.execute(QUERIES["spend_budgets"], row)


def release_budgets(tx: Tx, usage_ids: Iterable[UUID]) -> None:
    """Return what is held for requests that used nothing. Repeating it changes nothing."""
    tx.execute(QUERIES["release_budgets"], {"ids": list(usage_ids)})


def sweep_budgets(tx: Tx, holder: str, *, now: datetime) -> None:
    """Return what earlier runs of a gateway held, once their reports are handed over."""
    row = {"holder": holder, "long_ago": now - timedelta(days=30)}
    tx.execute(QUERIES["sweep_budgets"], row)


def _standings(tx: Tx, budgets: Sequence[Limit], *, now: datetime) -> dict[UUID, Standing]:
    """One statement: between two, a hold could turn into what was spent and be in neither."""
    row = {
        "ids": [limit.id for limit in budgets],
        "starts": [limit.kind.began(now) for limit in budgets],
        "now": now,
    }
    found = {row["id"]: row for row in tx.execute(QUERIES["get_standings"], row)}
    return {
        limit.id: Standing(
            limit=limit,
            spent_nanos=int(found[limit.id]["spent"]),
            held_nanos=int(found[limit.id]["held"]),
        )
        for limit in budgets
    }


# ── rates ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one gateway let pass of one subject, since it first saw it."""

    gateway: str
    subject: UUID
    requests: int
    tokens: int
    running: int


def share_rates(tx: Tx, gateway: str, uses: Sequence[Use], *, now: datetime) -> list[Use]:
    """Tell the other gateways what passed here; return what they told lately."""
    if uses:
        tx.execute(
            QUERIES["tell_rates"],
            {
                "gateway": gateway, "now": now,
                "subjects": [use.subject for use in uses],
                "requests": [use.requests for use in uses],
                "tokens": [use.tokens for use in uses],
                "running": [use.running for use in uses],
            },
        )  # fmt: skip
    since = now - timedelta(seconds=10)
    rows = tx.execute(QUERIES["hear_rates"], {"gateway": gateway, "since": since}).fetchall()
    return [Use(**row) for row in rows]


def _limit(row: Mapping[str, Any]) -> Limit:
    return Limit(
        id=row["id"],
        tenant_id=row["tenant_id"],
        api_key_id=row["api_key_id"],
        kind=LimitKind(row["kind"]),
        set_by=Role(row["set_by"]),
        amount=int(row["amount"]),
        set_at=row["set_at"],
    )
