"""Moving money for many at once: one transaction, a few statements, however many there are.

The rules are those of `store`, which does the same for one. Only what it would raise for one
is an outcome here: of many, one that cannot be done must not stop the others. The caller still
owns the transaction, and an error that is raised has undone all of it.

Locks are taken in one order by everybody: open holds by their ids, then accounts by theirs,
all of a batch's at once. So two batches over the same accounts wait for each other, and never
both ways; and transfers are numbered under the locks, as the auditor's replay needs it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import DictRow

from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound, SubletError, Unpaid
from sublet.core.ids import sibling_id
from sublet.core.money import Money
from sublet.ledger import store
from sublet.ledger.store import CONTENTS, QUERIES, RESOLUTION, as_account, as_row
from sublet.ledger.transfer import Account, Kind, Transfer

SIDES: Final = ("debit_account", "credit_account")
_COLUMNS: Final = (
    "id", "kind", "pending_id", "debit_account", "credit_account", "amount_nanos", "reason",
    "expires_at", "happened_at",
)  # fmt: skip

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What `store.hold` is given for one."""

    transfer: Transfer
    holder: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What `store.settle` is given for one. An amount of zero voids the hold."""

    hold_id: UUID
    amount: Money
    happened_at: datetime


class Holds:
    """Holds made together, one after the other, each of what the last one left.

    Made, it has locked the accounts. `hold` decides in memory; `write` makes it so.
    """

    def __init__(self, tx: Tx, *, accounts: Iterable[int], ids: Iterable[UUID]) -> None:
        self._tx = tx
        with tx.pipeline():
            locked = lock_accounts(tx, accounts)
            # Under the locks: whoever used one of these ids for these accounts has ended.
            found = tx.execute(QUERIES["get_transfers"], {"ids": list(ids)})
        self._accounts = {row["id"]: as_account(row) for row in locked}
        self._known: dict[UUID, Row] = {row["id"]: row for row in found}
        self._new: list[dict[str, Any]] = []

    def account(self, account_id: int) -> Account:
        """Return an account as it stands after what was held so far."""
        return self._accounts[account_id]

    def known(self, transfer_id: UUID) -> bool:
        """Say whether one of the given ids was used before."""
        return transfer_id in self._known

    def hold(self, hold: Hold, *, now: datetime) -> bool | SubletError:
        """As `store.hold`; what that raises is returned."""
        transfer = hold.transfer
        try:
            row = as_row(transfer, Kind.PENDING, now=now)
        except Invalid as error:
            return error
        payer = self._accounts.get(transfer.debit_account)
        paid = self._accounts.get(transfer.credit_account)
        if payer is None or paid is None:
            return NotFound(f"transfer {transfer.id} names an account that does not exist")
        if payer is paid:
            return Invalid(f"transfer {transfer.id} pays an account from itself")
        before = self._known.get(transfer.id)
        if before is not None:
            return False if _same(before, row) else _used(transfer.id)
        assert payer.currency == paid.currency == transfer.amount.currency, transfer
        if payer.prepaid and payer.available.nanos < transfer.amount.nanos:
            return Unpaid(f"{transfer.amount} is needed and {payer.available} is available")
        row |= {"expires_at": hold.expires_at, "holder": hold.holder}
        self._known[transfer.id] = row
        self._new.append(row)
        self._accounts[payer.id] = replace(
            payer, debits_pending=payer.debits_pending + transfer.amount.nanos
        )
        return True

    def write(self, *, now: datetime) -> set[UUID]:
        """Record what was held.

        Returns:
            ids that somebody else took at this very moment, for other accounts: not held.
        """
        if not self._new:
            return set()
        names = ("id", "debit_account", "holder", "expires_at")
        holds = {name: [row[name] for row in self._new] for name in names}
        with self._tx.pipeline():
            inserted = _insert(self._tx, self._new, now=now)
            self._tx.execute(QUERIES["open_holds"], holds)
            move(self._tx, ((row, row["amount_nanos"], 0) for row in self._new))
        written = {row["id"] for row in inserted}
        lost = [row for row in self._new if row["id"] not in written]
        if lost:
            move(self._tx, ((row, -row["amount_nanos"], 0) for row in lost))
        return {row["id"] for row in lost}


def hold_many(tx: Tx, holds: Sequence[Hold], *, now: datetime) -> list[bool | SubletError]:
    """Do `store.hold` for each, in this order: whoever the money no longer suffices for is Unpaid.

    Returns:
        for each, what `store.hold` would return or raise.
    """
    taken = Holds(
        tx,
        accounts=_accounts_of(hold.transfer for hold in holds),
        ids=[hold.transfer.id for hold in holds],
    )
    outcomes = [taken.hold(hold, now=now) for hold in holds]
    lost = taken.write(now=now)
    return [
        _used(hold.transfer.id) if hold.transfer.id in lost else outcome
        for hold, outcome in zip(holds, outcomes, strict=True)
    ]


def settle_many(
    tx: Tx, settlements: Sequence[Settlement], *, now: datetime
) -> list[UUID | SubletError | None]:
    """Do `store.settle` for each.

    Returns:
        for each, what `store.settle` would return or raise.
    """
    held = lock_holds(tx, [one.hold_id for one in settlements])
    plain: dict[UUID, Settlement] = {}  # the first of each hold, if it is open and holds enough
    for one in settlements:
        row = held.get(one.hold_id)
        if row is not None and 0 <= one.amount.nanos <= row["amount_nanos"]:
            plain.setdefault(one.hold_id, one)
    moved = resolve(
        tx, list(plain.values()), held, beside=[one.hold_id for one in settlements], now=now
    )
    return [
        moved[one.hold_id]
        if plain.get(one.hold_id) is one
        else _settle_apart(tx, one, now=now)  # a repeat, too much, or nothing to resolve
        for one in settlements
    ]


def void_many(tx: Tx, hold_ids: Sequence[UUID], *, now: datetime) -> list[SubletError | None]:
    """Do `store.void` for each.

    Returns:
        for each None, or what `store.void` would raise.
    """
    voids = [Settlement(hold_id=id_, amount=Money(0), happened_at=now) for id_ in hold_ids]
    return [
        outcome if isinstance(outcome, SubletError) else None
        for outcome in settle_many(tx, voids, now=now)
    ]


def pay_many(
    tx: Tx, transfers: Sequence[Transfer], *, accounts: Iterable[int] = (), now: datetime
) -> dict[UUID, SubletError]:
    """Do `store.post` for all of them, or for none. A repeat of one is no error, and no effect.

    What an account is paid here it cannot spend here.

    Args:
        tx: has locked none of their accounts, or all of them and `accounts`.
        transfers: no id twice.
        accounts: others that this transaction will move money of: locked now as well, in order.
        now: when it is recorded.

    Returns:
        {transfer: what `store.post` would raise}; if there is one, nothing was paid.

    Raises:
        Invalid: somebody took one of these ids at this very moment, for other accounts.
    """
    if not transfers:
        return {}
    refused: dict[UUID, SubletError] = {}
    rows = []
    for one in transfers:
        if one.debit_account == one.credit_account:
            refused[one.id] = Invalid(f"transfer {one.id} pays an account from itself")
        try:
            rows.append(as_row(one, Kind.POSTED, now=now))
        except Invalid as error:
            refused[one.id] = error
    if refused:
        return refused
    with tx.pipeline():
        lock_accounts(tx, _accounts_of(transfers) | {*accounts})
        found = tx.execute(QUERIES["pay_many"], as_columns(rows) | {"recorded_at": now})
    for row in found:
        if row["why"] == "taken":
            raise _used(row["id"])
        refused[row["id"]] = _REFUSALS[row["why"]](row["id"])
    return refused


def find_accounts(tx: Tx, codes: Sequence[str]) -> dict[str, int]:
    """Return {code: id} of those of these accounts that there are."""
    found = tx.execute(QUERIES["find_accounts"], {"codes": list(codes)}).fetchall()
    return {row["code"]: row["id"] for row in found}


def existing(tx: Tx, ids: Sequence[UUID]) -> set[UUID]:
    """Return those of these transfers that there are."""
    return {row["id"] for row in tx.execute(QUERIES["get_transfers"], {"ids": list(ids)})}


# ── for rooms that add rows of their own between the locks and the money ─────────────────


def lock_holds(tx: Tx, hold_ids: Sequence[UUID]) -> dict[UUID, Row]:
    """Lock those of these holds that are open, and return what each of them holds."""
    with tx.pipeline():  # together with the transaction's BEGIN
        found = tx.execute(QUERIES["lock_holds"], {"ids": list(hold_ids)})
    return {row["id"]: row for row in found}


def lock_accounts(tx: Tx, ids: Iterable[int]) -> Cursor[DictRow]:
    """Lock these accounts, in order, and return them as they stand."""
    return tx.execute(QUERIES["lock_accounts"], {"ids": sorted(set(ids))})


def resolved(tx: Tx, hold_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of these holds that are not open any more; nothing is locked."""
    if not hold_ids:
        return set()
    found = tx.execute(QUERIES["find_resolved_holds"], {"ids": list(hold_ids)})
    return {row["id"] for row in found}


def resolve(
    tx: Tx,
    settlements: Sequence[Settlement],
    held: Mapping[UUID, Row],
    *,
    beside: Sequence[UUID] = (),
    accounts: Iterable[int] = (),
    now: datetime,
) -> dict[UUID, UUID | None]:
    """Settle holds that are open, locked, and hold enough: each once, and none can fail.

    Args:
        tx: has locked them.
        settlements: at most one a hold.
        held: what `lock_holds` returned.
        beside: other holds that this transaction will look at, one by one: their accounts
            are locked now as well, in order.
        accounts: others that this transaction will move money of: the same.
        now: when it is recorded.

    Returns:
        {hold: the transfer that moved its money, None when it was voided}.
    """
    rows = [_resolution(held[one.hold_id], one) for one in settlements]
    apart = [id_ for id_ in beside if id_ not in held]
    others: Iterable[Row] = []
    if apart:
        others = tx.execute(QUERIES["get_transfers"], {"ids": apart}).fetchall()
    locked = {row[side] for row in (*held.values(), *others) for side in SIDES} | {*accounts}
    if not rows:
        lock_accounts(tx, locked)
        return {}
    ids = [one.hold_id for one in settlements]
    with tx.pipeline():
        lock_accounts(tx, locked)
        tx.execute(QUERIES["close_holds"], {"ids": ids})
        inserted = _insert(tx, rows, now=now)
        move(
            tx,
            ((row, -held[row["pending_id"]]["amount_nanos"], row["amount_nanos"]) for row in rows),
        )
    assert len(inserted.fetchall()) == len(rows), ids
    return {row["pending_id"]: row["id"] if row["amount_nanos"] else None for row in rows}


# ── inside ───────────────────────────────────────────────────────────────────────────────


def _settle_apart(tx: Tx, one: Settlement, *, now: datetime) -> UUID | SubletError | None:
    try:
        with tx.transaction():
            return store.settle(tx, one.hold_id, one.amount, happened_at=one.happened_at, now=now)
    except SubletError as error:
        return error


def _resolution(held: Row, one: Settlement) -> dict[str, Any]:
    return {
        **held,
        "id": sibling_id(one.hold_id, RESOLUTION),
        "kind": Kind.POST if one.amount.nanos else Kind.VOID,
        "pending_id": one.hold_id,
        "amount_nanos": one.amount.nanos,
        "expires_at": None,
        "happened_at": one.happened_at,
    }


# These return before Postgres has answered, where the connection is in pipeline mode: a batch
# makes a few trips to the server, not one a statement.


def _insert(tx: Tx, rows: Sequence[Row], *, now: datetime) -> Cursor[DictRow]:
    return tx.execute(QUERIES["insert_transfers"], as_columns(rows) | {"recorded_at": now})


def as_columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what `insert_transfers` is given for these."""
    return {name: [row[name] for row in rows] for name in _COLUMNS}


def move(tx: Tx, changes: Iterable[tuple[Row, int, int]]) -> None:
    """Add up (transfer, pending nanos, posted nanos) and move each account once."""
    sums: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row, pending, posted in changes:
        debited, credited = sums[row["debit_account"]], sums[row["credit_account"]]
        debited[0] += int(pending)
        debited[1] += int(posted)
        credited[2] += int(pending)
        credited[3] += int(posted)
    tx.execute(
        QUERIES["move_balances_of_many"],
        {
            "id": list(sums),
            "debits_pending": [change[0] for change in sums.values()],
            "debits_posted": [change[1] for change in sums.values()],
            "credits_pending": [change[2] for change in sums.values()],
            "credits_posted": [change[3] for change in sums.values()],
        },
    )


def _accounts_of(transfers: Iterable[Transfer]) -> set[int]:
    return {
        id_ for transfer in transfers for id_ in (transfer.debit_account, transfer.credit_account)
    }


def _same(before: Row, row: Row) -> bool:
    return all(before[name] == row[name] for name in CONTENTS)


def _used(transfer_id: UUID) -> Invalid:
    return Invalid(f"transfer {transfer_id} was already recorded with other contents")


_REFUSALS: Final[Mapping[str, Callable[[UUID], SubletError]]] = {
    "used": _used,
    "poor": lambda id_: Unpaid(f"the account that transfer {id_} debits has not enough"),
    "missing": lambda id_: NotFound(f"transfer {id_} names an account that does not exist"),
}
