"""Moving money. The caller owns the transaction, so its own rows commit with the money."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Conflict, Invalid, NotFound, Unpaid
from sublet.core.failpoint import failpoint
from sublet.core.ids import sibling_id
from sublet.core.money import MAX_NANOS, Money
from sublet.ledger.transfer import Account, Kind, Movement, OpenHold, Transfer

QUERIES: Final = load_queries("sublet.ledger")

# What makes two transfers of one id the same. Times are left out: a repeat may be later.
CONTENTS: Final = (
    "kind", "pending_id", "debit_account", "credit_account", "amount_nanos", "reason",
)  # fmt: skip

RESOLUTION: Final = 1  # of the siblings of a hold's id
# How many rows a cursor brings at a time.
_PAGE: Final = 2000


def open_account(tx: Tx, code: str, *, prepaid: bool, currency: str = "USD") -> Account:
    """Return the account `code`, opened now if it was not open before."""
    tx.execute(QUERIES["open_account"], {"code": code, "currency": currency, "prepaid": prepaid})
    return get_account(tx, code)


def get_account(tx: Tx, code: str) -> Account:
    """Return the account as it stands.

    Raises:
        NotFound: no account has this code.
    """
    row = one(tx, QUERIES["get_account"], {"code": code})
    if row is None:
        raise NotFound(f"there is no account {code}")
    return as_account(row)


def lock(tx: Tx, *codes: str) -> list[Account]:
    """Return accounts as they stand, in the order asked for, locked until the transaction ends.

    Raises:
        NotFound: no account has one of these codes.
    """
    rows = tx.execute(QUERIES["lock_named_accounts"], {"codes": list(codes)}).fetchall()
    found = {row["code"]: as_account(row) for row in rows}
    for code in codes:
        if code not in found:
            raise NotFound(f"there is no account {code}")
    return [found[code] for code in codes]


def post(tx: Tx, transfer: Transfer, *, now: datetime) -> bool:
    """Move the money of `transfer` once, however often it is called with the same id.

    Returns:
        True the first time, False when the id was posted before.

    Raises:
        NotFound: one of the accounts does not exist.
        Invalid: the id was used before, for a different transfer; or the amount is no amount.
        Unpaid: the debited account is prepaid and has too little left.
    """
    row = as_row(transfer, Kind.POSTED, now=now)
    accounts = _lock(tx, row)
    if not _insert(tx, row):
        return False
    failpoint("ledger.post.inserted")
    _post(tx, transfer, accounts)
    return True


def hold(
    tx: Tx,
    transfer: Transfer,
    *,
    holder: str,
    expires_at: datetime,
    now: datetime,
    locked: Sequence[Account] = (),
) -> bool:
    """Set the money of `transfer` aside, to be resolved by `settle`, `void` or `expire`.

    `locked` are its accounts, if the caller has them from `lock`.

    Returns:
        True the first time, False when the id was held before.

    Raises:
        as `post`.
    """
    row = as_row(transfer, Kind.PENDING, now=now) | {"expires_at": expires_at, "holder": holder}
    accounts = {account.id: account for account in locked} or _lock(tx, row)
    try:
        _check_funds(transfer, accounts)
    except Unpaid:
        if _is_repeat(tx, row):
            return False
        raise
    if one(tx, QUERIES["insert_hold"], row) is not None:
        return True
    assert _is_repeat(tx, row), row
    return False


def settle(
    tx: Tx, hold_id: UUID, amount: Money, *, happened_at: datetime, now: datetime
) -> UUID | None:
    """Resolve a hold: move `amount` of it and return the rest. Zero voids it.

    Returns:
        the id of the transfer that moved the money; None when the amount is zero.

    Raises:
        NotFound: there is no such hold.
        Invalid: `amount` is less than nothing or more than was held, or the hold was settled
            for another amount.
        Conflict: the hold was voided or has expired.
    """
    kind = Kind.POST if amount.nanos else Kind.VOID
    return _resolve(tx, hold_id, kind, amount.nanos, happened_at=happened_at, now=now)


def void(tx: Tx, hold_id: UUID, *, now: datetime) -> None:
    """Resolve a hold: return all of it.

    Raises:
        NotFound: there is no such hold.
        Conflict: the hold was settled, or has expired.
    """
    _resolve(tx, hold_id, Kind.VOID, 0, happened_at=now, now=now)


def expire(tx: Tx, *, now: datetime, limit: int = 1000) -> list[UUID]:
    """Return the money of up to `limit` holds whose time has run out; say which."""
    rows = tx.execute(QUERIES["list_expired_holds"], {"now": now, "limit": limit}).fetchall()
    expired = [row["transfer_id"] for row in rows]
    # First all of their accounts, in order: taken hold by hold, two who each resolve several
    # could wait for each other.
    tx.execute(QUERIES["lock_accounts_of_transfers"], {"ids": expired})
    for hold_id in expired:
        _resolve(tx, hold_id, Kind.EXPIRE, 0, happened_at=now, now=now)
        failpoint("ledger.expire.one_of_several")
    return expired


def holds_of(tx: Tx, holder_prefix: str) -> list[OpenHold]:
    """Return every open hold whose holder's name starts with this."""
    escaped = holder_prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    rows = tx.execute(QUERIES["list_holds_of"], {"pattern": escaped + "%"}).fetchall()
    return [
        OpenHold(
            id=row["transfer_id"],
            holder=row["holder"],
            debit_account=row["debit_account"],
            nanos=int(row["amount_nanos"]),
        )
        for row in rows
    ]


def any_held(tx: Tx) -> bool:
    """Say whether any hold is open."""
    return one(tx, QUERIES["any_held"], {}) is not None


def list_movements(
    tx: Tx, code: str, *, limit: int, before: int | None = None
) -> list[dict[str, Any]]:
    """Return what moved money in (above zero) or out of an account, newest first.

    `before` is the `sequence` of the last one seen, to page on.
    """
    row = {"code": code, "limit": limit, "before": before}
    return tx.execute(QUERIES["list_movements"], row).fetchall()


def list_accounts(tx: Tx) -> list[Account]:
    """Return every account as it stands, by its code."""
    return [as_account(row) for row in tx.execute(QUERIES["list_accounts"]).fetchall()]


def read_movements(tx: Tx, currencies: Mapping[int, str]) -> Iterator[Movement]:
    """Read all that ever moved money, oldest first, a few thousand at a time.

    `currencies` are the accounts', by their ids. Read it to its end inside `tx`.
    """
    with tx.cursor(name="movements") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(QUERIES["list_all_movements"])
        for row in cursor:
            yield Movement(
                transfer=Transfer(
                    id=row["id"],
                    debit_account=row["debit_account"],
                    credit_account=row["credit_account"],
                    amount=Money(int(row["amount_nanos"]), currencies[row["debit_account"]]),
                    reason=row["reason"],
                    happened_at=row["happened_at"],
                ),
                sequence=row["sequence"],
                hold_id=row["pending_id"],
                recorded_at=row["recorded_at"],
            )


def _resolve(
    tx: Tx, hold_id: UUID, kind: Kind, nanos: int, *, happened_at: datetime, now: datetime
) -> UUID | None:
    held = one(tx, QUERIES["get_transfer"], {"id": hold_id})
    if held is None or held["kind"] != Kind.PENDING:
        raise NotFound(f"there is no hold {hold_id}")
    if not 0 <= nanos <= held["amount_nanos"]:
        raise Invalid(f"hold {hold_id} holds {held['amount_nanos']} nanos, not {nanos}")
    # Locks the hold; a second resolver waits here, then finds it gone.
    if one(tx, QUERIES["close_hold"], {"id": hold_id}) is None:
        before = one(tx, QUERIES["get_resolution"], {"pending_id": hold_id})
        assert before is not None, hold_id
        if before["kind"] != kind:
            raise Conflict(f"hold {hold_id} was already resolved: {before['kind']}")
        if before["amount_nanos"] != nanos:
            raise Invalid(f"hold {hold_id} was settled for {before['amount_nanos']} nanos")
        return before["id"] if nanos else None
    resolution = {
        **held,
        "id": sibling_id(hold_id, RESOLUTION),
        "kind": kind,
        "pending_id": hold_id,
        "amount_nanos": nanos,
        "expires_at": None,
        "happened_at": happened_at,
        "recorded_at": now,
    }
    _lock(tx, held)
    failpoint(f"ledger.{kind}.closed")
    inserted = one(tx, QUERIES["insert_transfer"], resolution)
    assert inserted is not None, hold_id
    failpoint(f"ledger.{kind}.inserted")
    tx.execute(
        QUERIES["move_balances"],
        {**resolution, "pending_nanos": -held["amount_nanos"], "posted_nanos": nanos},
    )
    return resolution["id"] if nanos else None


def as_row(transfer: Transfer, kind: Kind, *, now: datetime) -> dict[str, Any]:
    if not 0 < transfer.amount.nanos <= MAX_NANOS:
        raise Invalid(
            f"a transfer moves more than nothing and at most {Money(MAX_NANOS)},"
            f" not {transfer.amount}"
        )
    return {
        "id": transfer.id,
        "kind": kind,
        "pending_id": None,
        "debit_account": transfer.debit_account,
        "credit_account": transfer.credit_account,
        "amount_nanos": transfer.amount.nanos,
        "reason": transfer.reason,
        "expires_at": None,
        "happened_at": transfer.happened_at,
        "recorded_at": now,
    }


def _lock(tx: Tx, row: Mapping[str, Any]) -> dict[int, Account]:
    """Lock both accounts of a transfer, before it gets its place in the record.

    So an account's transfers are numbered in the order in which its money moved, and whoever
    replays them in that order finds no moment that never was.
    """
    ids = sorted({row["debit_account"], row["credit_account"]})
    locked = {
        found["id"]: as_account(found)
        for found in tx.execute(QUERIES["lock_accounts"], {"ids": ids}).fetchall()
    }
    if len(locked) < len(ids):
        raise NotFound(f"transfer {row['id']} names an account that does not exist")
    return locked


def _insert(tx: Tx, row: Mapping[str, Any]) -> bool:
    if one(tx, QUERIES["insert_transfer"], dict(row)) is not None:
        return True
    assert _is_repeat(tx, row), row
    return False


def _is_repeat(tx: Tx, row: Mapping[str, Any]) -> bool:
    """Say whether this transfer was recorded before.

    Raises:
        Invalid: one of its id was, with other contents.
    """
    before = one(tx, QUERIES["get_transfer"], {"id": row["id"]})
    if before is not None and any(before[name] != row[name] for name in CONTENTS):
        raise Invalid(f"transfer {row['id']} was already recorded with other contents")
    return before is not None


def _check_funds(transfer: Transfer, accounts: Mapping[int, Account]) -> None:
    assert {account.currency for account in accounts.values()} == {transfer.amount.currency}
    payer = accounts[transfer.debit_account]
    if payer.prepaid and payer.available.nanos < transfer.amount.nanos:
        raise Unpaid(f"{transfer.amount} is needed and {payer.available} is available")


def _post(tx: Tx, transfer: Transfer, accounts: Mapping[int, Account]) -> None:
    _check_funds(transfer, accounts)
    tx.execute(
        QUERIES["move_balances"],
        {
            "debit_account": transfer.debit_account,
            "credit_account": transfer.credit_account,
            "pending_nanos": 0,
            "posted_nanos": transfer.amount.nanos,
        },
    )


def as_account(row: Mapping[str, Any]) -> Account:
    return Account(
        id=row["id"],
        code=row["code"],
        currency=row["currency"],
        prepaid=row["prepaid"],
        debits_pending=int(row["debits_pending"]),
        debits_posted=int(row["debits_posted"]),
        credits_pending=int(row["credits_pending"]),
        credits_posted=int(row["credits_posted"]),
    )
