"""Charging many at once: usage, money and charges of all of them in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import SubletError
from sublet.core.ids import derived_id
from sublet.core.money import Money
from sublet.ledger import batch as ledger
from sublet.ledger.batch import Settlement
from sublet.metering import store
from sublet.metering.store import QUERIES, price_of
from sublet.metering.usage import Line, Usage

_USAGE: Final = tuple(field.name for field in fields(Usage))
# A page of charges ends at a time of recording, so no two bills of a batch share one.
_APART: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What `store.settle` is given for one."""

    usage: Usage
    lines: Sequence[Line]
    hold_id: UUID


def settle_many(tx: Tx, bills: Sequence[Bill], *, now: datetime) -> list[Money | SubletError]:
    """Do `store.settle` for each.

    Those whose hold is open and suffices go together. The others (repeats, and holds that are
    gone) are rare, and go one by one behind them.

    Returns:
        for each, what `store.settle` would return or raise.
    """
    amounts = [price_of(bill.lines) for bill in bills]
    times = [now + number * _APART for number in range(len(bills))]
    held = ledger.lock_holds(tx, [bill.hold_id for bill in bills])
    plain = _plain(bills, amounts, held)
    new = _insert_usages(tx, [(bills[number].usage, times[number]) for number in plain])
    fresh = [number for number in plain if bills[number].usage.id in new]
    moved = ledger.resolve(
        tx,
        [
            Settlement(
                hold_id=bills[number].hold_id,
                amount=amounts[number],
                happened_at=bills[number].usage.happened_at,
            )
            for number in fresh
        ],
        held,
        beside=[bill.hold_id for bill in bills],
        now=now,
    )
    _insert_charges(
        tx, [(bills[number], moved[bills[number].hold_id], times[number]) for number in fresh]
    )
    outcomes: dict[int, Money | SubletError] = dict.fromkeys(plain, Money(0))
    outcomes |= {number: amounts[number] for number in fresh}
    for number, bill in enumerate(bills):
        if number not in outcomes:
            outcomes[number] = _settle_apart(tx, bill, now=times[number])
    return [outcomes[number] for number in range(len(bills))]


def _plain(bills: Sequence[Bill], amounts: Sequence[Money], held: dict[UUID, Any]) -> list[int]:
    """Return which bills can be settled together: first of their ids, enough held."""
    plain: list[int] = []
    usages: set[UUID] = set()
    holds: set[UUID] = set()
    for number, bill in enumerate(bills):
        row = held.get(bill.hold_id)
        seen = bill.hold_id in holds or bill.usage.id in usages
        holds.add(bill.hold_id)
        usages.add(bill.usage.id)
        if row is not None and not seen and amounts[number].nanos <= row["amount_nanos"]:
            plain.append(number)
    return plain


def _insert_usages(tx: Tx, usages: Sequence[tuple[Usage, datetime]]) -> set[UUID]:
    """Record usages; say which were new. In id order: two batches must not wait both ways."""
    if not usages:
        return set()
    ordered = sorted(usages, key=lambda usage: usage[0].id)
    columns = {name: [getattr(usage, name) for usage, _ in ordered] for name in _USAGE}
    columns["recorded_at"] = [at for _, at in ordered]
    return {row["id"] for row in tx.execute(QUERIES["insert_usages"], columns).fetchall()}


def _insert_charges(tx: Tx, charged: Sequence[tuple[Bill, UUID | None, datetime]]) -> None:
    rows = [
        {
            "id": derived_id(bill.usage.id, "charge", line.price.id),
            "usage_id": bill.usage.id,
            "tenant_id": bill.usage.tenant_id,
            "price_id": line.price.id,
            "quantity": line.quantity,
            "amount_nanos": line.price.rate.charge(line.quantity).nanos,
            "transfer_id": transfer_id,
            "happened_at": bill.usage.happened_at,
            "recorded_at": recorded_at,
        }
        for bill, transfer_id, recorded_at in charged
        for line in bill.lines
    ]
    if rows:
        tx.execute(
            QUERIES["insert_charges"], {name: [row[name] for row in rows] for name in rows[0]}
        )


def _settle_apart(tx: Tx, bill: Bill, *, now: datetime) -> Money | SubletError:
    try:
        with tx.transaction():
            return store.settle(tx, bill.usage, bill.lines, hold_id=bill.hold_id, now=now)
    except SubletError as error:
        return error
