"""Linked transfers: a chain of steps of which the ledger takes all, or none.

A step is what `store` does for one: post, hold, settle, void, expire. Each step of a chain sees
what the steps ahead of it did, so a chain may spend what it has just received, and settle a hold
that it has just made. The first step that cannot be taken takes the whole chain with it, and is
named.

A chain is recorded whole, so it is also repeated whole: when every step was taken before, with
these contents, it has no effect; a chain of which only a part was taken before is `Invalid`.

The caller owns the transaction, and whatever happened to a chain leaves it usable.

Locks are those of `batch`, in its order: open holds by their ids, then accounts by theirs, all
of them before anything is decided. Decided is in memory; then the rows are inserted in the order
of their ids, so that two who use the same ids for other accounts wait for each other and never
both ways. A row that is not there cannot be locked: its insertion is what claims an id. Whoever
loses one to another begins anew, and finds it taken.
"""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import Conflict, Invalid, NotFound, SubletError, Unpaid
from sublet.core.ids import sibling_id
from sublet.ledger.batch import SIDES, Hold, Settlement, as_columns, move
from sublet.ledger.store import CONTENTS, QUERIES, RESOLUTION, as_account, as_row
from sublet.ledger.transfer import Account, Kind, Transfer

Row = Mapping[str, Any]

# Each time means that somebody has just recorded one of these ids, so two are rare.
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """As `store.post`."""

    transfer: Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Void:
    """As `store.void`."""

    hold_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire:
    """As `store.expire`, of one hold; a Conflict while its time has not run out."""

    hold_id: UUID


Step = Post | Hold | Settlement | Void | Expire


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A chain of which nothing was done, because of one step."""

    at: int  # which step, from 0
    error: SubletError  # what `store` would raise for it

    def __str__(self) -> str:
        """Say which step, counted as people do, and why."""
        return f"step {self.at + 1} cannot be taken, so none of the chain was: {self.error}"


def link(tx: Tx, chain: Sequence[Step], *, now: datetime) -> bool:
    """Take every step of `chain`, in this order, or none.

    Returns:
        True the first time, False when the chain was recorded before.

    Raises:
        SubletError: of the class that `store` raises for the first step that cannot be taken;
            its message says which. Invalid, when a part of the chain was recorded before.
    """
    outcome = link_many(tx, [chain], now=now)[0]
    if isinstance(outcome, Broken):
        raise type(outcome.error)(str(outcome)) from outcome.error
    return outcome


def link_many(tx: Tx, chains: Sequence[Sequence[Step]], *, now: datetime) -> list[bool | Broken]:
    """Do `link` for each, in this order: a chain that breaks leaves the others alone.

    Returns:
        for each what `link` would return, or how it broke.

    Raises:
        Conflict: others were quicker, again and again; nothing of any chain was done.
    """
    named = _name(chains)
    for _ in range(_ATTEMPTS):
        # Ahead of the savepoint, which would otherwise be a transaction, and commit.
        open_ = tx.execute(QUERIES["lock_holds"], {"ids": named.holds}).fetchall()
        try:
            with tx.transaction():
                books = _read(tx, named, open_)
                outcomes = [_try(books, chain, now=now) for chain in chains]
                _write(tx, books, now=now)
        except _LostError:
            continue  # with what the others have done meanwhile
        return outcomes
    raise Conflict(f"others took the ids of a chain, {_ATTEMPTS} times in a row: send it again")


# ── inside ───────────────────────────────────────────────────────────────────────────────


class _LostError(Exception):
    """Somebody was quicker: what was read no longer holds."""


@dataclass(slots=True)
class _Books:
    """What is recorded, as far as the steps concern it, and what they have added so far."""

    accounts: ChainMap[int, Account]  # locked
    transfers: ChainMap[UUID, Row]  # by id
    resolutions: ChainMap[UUID, Row]  # by the hold that they resolve
    locked: frozenset[UUID]  # holds that were open
    new: list[Row]  # in the order of the steps

    def trial(self) -> "_Books":
        """Return books to try a chain on, which leave these as they are."""
        return _Books(
            accounts=self.accounts.new_child(),
            transfers=self.transfers.new_child(),
            resolutions=self.resolutions.new_child(),
            locked=self.locked,
            new=[],
        )

    def keep(self, trial: "_Books") -> None:
        self.accounts.update(trial.accounts.maps[0])
        self.transfers.update(trial.transfers.maps[0])
        self.resolutions.update(trial.resolutions.maps[0])
        self.new += trial.new

    def take(self, step: Step, *, now: datetime) -> bool:
        """Return True when the step is new, False when it was recorded before; or raise."""
        match step:
            case Post(transfer=transfer):
                return self._transfer(as_row(transfer, Kind.POSTED, now=now), transfer)
            case Hold(transfer=transfer):
                row = as_row(transfer, Kind.PENDING, now=now)
                row |= {"expires_at": step.expires_at, "holder": step.holder}
                return self._transfer(row, transfer)
            case Settlement():
                kind = Kind.POST if step.amount.nanos else Kind.VOID
                return self._resolve(
                    step.hold_id, kind, step.amount.nanos, happened_at=step.happened_at
                )
            case Void():
                return self._resolve(step.hold_id, Kind.VOID, 0, happened_at=now)
            case Expire():
                hold = self.transfers.get(step.hold_id)
                resolved = step.hold_id in self.resolutions
                if hold and hold["kind"] == Kind.PENDING and not resolved:
                    until = hold["expires_at"]
                    if until > now:
                        raise Conflict(f"hold {step.hold_id} runs until {until.isoformat()}")
                return self._resolve(step.hold_id, Kind.EXPIRE, 0, happened_at=now)

    def _transfer(self, row: Row, transfer: Transfer) -> bool:
        payer = self.accounts.get(transfer.debit_account)
        payee = self.accounts.get(transfer.credit_account)
        if payer is None or payee is None:
            raise NotFound(f"transfer {transfer.id} names an account that does not exist")
        if payer.id == payee.id:
            raise Invalid(f"transfer {transfer.id} pays an account from itself")
        before = self.transfers.get(transfer.id)
        if before is not None:
            if any(before[name] != row[name] for name in CONTENTS):
                raise Invalid(f"transfer {transfer.id} was already recorded with other contents")
            return False
        assert payer.currency == payee.currency == transfer.amount.currency, transfer
        if payer.prepaid and payer.available.nanos < transfer.amount.nanos:
            raise Unpaid(f"{transfer.amount} is needed and {payer.available} is available")
        self._record(row, *_change(row, None))
        return True

    def _resolve(self, hold_id: UUID, kind: Kind, nanos: int, *, happened_at: datetime) -> bool:
        held = self.transfers.get(hold_id)
        if held is None or held["kind"] != Kind.PENDING:
            raise NotFound(f"there is no hold {hold_id}")
        if not 0 <= nanos <= held["amount_nanos"]:
            raise Invalid(f"hold {hold_id} holds {held['amount_nanos']} nanos, not {nanos}")
        before = self.resolutions.get(hold_id)
        if before is not None:
            if before["kind"] != kind:
                raise Conflict(f"hold {hold_id} was already resolved: {before['kind']}")
            if before["amount_nanos"] != nanos:
                raise Invalid(f"hold {hold_id} was settled for {before['amount_nanos']} nanos")
            return False
        row = {
            **held,
            "id": sibling_id(hold_id, RESOLUTION),
            "kind": kind,
            "pending_id": hold_id,
            "amount_nanos": nanos,
            "expires_at": None,
            "happened_at": happened_at,
        }
        self.resolutions[hold_id] = row
        self._record(row, *_change(row, held))
        return True

    def _record(self, row: Row, pending: int, posted: int) -> None:
        # As far as what is available depends on it.
        payer, payee = self.accounts[row["debit_account"]], self.accounts[row["credit_account"]]
        self.accounts[payer.id] = replace(
            payer,
            debits_pending=payer.debits_pending + pending,
            debits_posted=payer.debits_posted + posted,
        )
        self.accounts[payee.id] = replace(payee, credits_posted=payee.credits_posted + posted)
        self.transfers[row["id"]] = row
        self.new.append(row)


def _try(books: _Books, chain: Sequence[Step], *, now: datetime) -> bool | Broken:
    trial = books.trial()
    for at, step in enumerate(chain):
        try:
            new = trial.take(step, now=now)
        except SubletError as error:
            return Broken(at=at, error=error)
        if len(trial.new) != (at + 1 if new else 0):
            why = (
                "it is new, and the steps ahead of it were recorded before"
                if new
                else "it was recorded before, and the steps ahead of it are new"
            )
            return Broken(at=at, error=Invalid(why))
    books.keep(trial)
    return bool(trial.new)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What the steps name."""

    transfers: list[Transfer]
    holds: list[UUID]  # to be resolved


def _name(chains: Sequence[Sequence[Step]]) -> _Named:
    transfers: list[Transfer] = []
    holds: list[UUID] = []
    for chain in chains:
        for step in chain:
            match step:
                case Post(transfer=transfer) | Hold(transfer=transfer):
                    transfers.append(transfer)
                case Settlement(hold_id=hold_id) | Void(hold_id=hold_id) | Expire(hold_id=hold_id):
                    holds.append(hold_id)
    return _Named(transfers=transfers, holds=holds)


def _read(tx: Tx, named: _Named, open_: Sequence[Row]) -> _Books:
    """Lock the accounts, in order; then read what is recorded under these ids.

    Raises:
        _LostError: a hold was made since `open_` was locked: it is not ours to resolve.
    """
    rows = [*({side: getattr(one, side) for side in SIDES} for one in named.transfers), *open_]
    with tx.pipeline():
        accounts = tx.execute(
            QUERIES["lock_accounts"], {"ids": sorted({row[side] for row in rows for side in SIDES})}
        )
        transfers = tx.execute(
            QUERIES["get_transfers"], {"ids": [*(one.id for one in named.transfers), *named.holds]}
        )
        resolutions = tx.execute(QUERIES["get_resolutions"], {"ids": named.holds})
    books = _Books(
        accounts=ChainMap({row["id"]: as_account(row) for row in accounts}),
        transfers=ChainMap({row["id"]: row for row in transfers}),
        resolutions=ChainMap({row["pending_id"]: row for row in resolutions}),
        locked=frozenset(row["id"] for row in open_),
        new=[],
    )
    for hold_id in named.holds:
        hold = books.transfers.get(hold_id, {"kind": None})
        resolved = hold["kind"] != Kind.PENDING or hold_id in books.resolutions
        if not resolved and hold_id not in books.locked:
            raise _LostError
    return books


def _write(tx: Tx, books: _Books, *, now: datetime) -> None:
    if not books.new:
        return
    resolved = {row["pending_id"] for row in books.new}
    opened = [row for row in books.new if row["kind"] == Kind.PENDING and row["id"] not in resolved]
    names = ("id", "debit_account", "holder", "expires_at")
    with tx.pipeline():
        inserted = tx.execute(
            QUERIES["insert_linked_transfers"], as_columns(books.new) | {"recorded_at": now}
        )
        tx.execute(QUERIES["open_holds"], {name: [row[name] for row in opened] for name in names})
        tx.execute(QUERIES["close_holds"], {"ids": list(resolved & books.locked)})
        move(
            tx,
            ((row, *_change(row, books.transfers.get(row["pending_id"]))) for row in books.new),
        )
    if len(inserted.fetchall()) < len(books.new):
        raise _LostError


def _change(row: Row, held: Row | None) -> tuple[int, int]:
    """Return by how much a transfer changes what is pending, and what is posted."""
    match row["kind"]:
        case Kind.POSTED:
            return 0, int(row["amount_nanos"])
        case Kind.PENDING:
            return int(row["amount_nanos"]), 0
        case _:
            assert held is not None, row
            return -int(held["amount_nanos"]), int(row["amount_nanos"])
