"""Charging reserved windows an hour at a time, used or not; and crediting those that were broken."""

import logging
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.db import Database, Tx
from sublet.core.errors import Unpaid
from sublet.core.ids import derived_id
from sublet.fleet import store as fleet
from sublet.leases import booking, contracts, deliveries, reservations
from sublet.leases import store as leases
from sublet.leases.contract import Contract, bill, given_back
from sublet.leases.contract import Line as BillLine
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.reservation import Reservation, broken_credit, overdue
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market
from sublet.metering import store
from sublet.metering.credits import Broken, give
from sublet.metering.lease_meter import credit_id
from sublet.metering.usage import Line, Outcome, Usage

log = logging.getLogger(__name__)

_AHEAD: Final = timedelta(days=1)


def settle_windows(db: Database, *, now: datetime) -> None:
    """Charge the hours that are over, credit what was broken, and end what is over.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        sold = reservations.list_open(tx)
        begun = [found for found in sold if found.starts_at <= now]
        pools = {pool.name: pool for pool in fleet.list_pools(tx)} if begun else {}
    for found in sold:
        if found.contract_id is not None and found.starts_at - _AHEAD <= now:
            with db.transaction("contract.hold") as tx:
                _hold_ahead(tx, found, now=now)
    for found in begun:
        with db.transaction() as tx:
            reclaimed = reservations.reclaimed_leases(tx, found.id)
        for lease in reclaimed:
            with db.transaction("reservation.credit") as tx:
                _credit_lease(tx, found, lease, now=now)
        if overdue([found], pools[found.pool], now):
            with db.transaction("reservation.credit") as tx:
                _credit_wait(tx, found.id, now=now)
        with suppress(Unpaid):  # only where somebody resolved its hold by hand: it stays owed
            _settle(db, found, now=now)


def _hold_ahead(tx: Tx, found: Reservation, *, now: datetime) -> None:
    """Hold each day of a step of a contract a day before it begins.

    What cannot be held stays owed: nothing is leased from it until it can, and it is held then.
    """
    rate = market.get_price(tx, found.price_id).rate
    block = reservations.count_blocks(tx, found.id)
    while block < found.blocks:
        begins = found.starts_at + timedelta(seconds=block * found.block_length)
        if now < begins - _AHEAD:
            break
        wallet = ledger.get_account(tx, f"tenant:{found.tenant_id}:wallet")
        needed = rate.charge_most(found.gpus * found.block_seconds(block))
        if wallet.available.nanos < needed.nanos:
            if now >= begins and not found.unpaid:
                reservations.set_unpaid(tx, found.id, unpaid=True)
                log.warning("contract.unpaid", extra={"contract": found.contract_id})
            return
        booking.hold_block(tx, found, block, rate, now=now)
        block += 1
    if found.unpaid:
        reservations.set_unpaid(tx, found.id, unpaid=False)


def close_contracts(db: Database, *, now: datetime) -> None:
    """Charge what is missing to the minimum of contracts that are over, and close them.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        over = [found for found in contracts.list_open(tx) if found.ends_at <= now]
    for found in over:
        with suppress(Unpaid), db.transaction("contract.close") as tx:
            if all(step.ended for step in contracts.steps_of(tx, found.id)):
                _charge_minimum(tx, found, now=now)
                contracts.close(tx, found.id)


def minimum_id(contract_id: UUID) -> UUID:
    return derived_id(contract_id, "minimum")


def _charge_minimum(tx: Tx, contract: Contract, *, now: datetime) -> None:
    for line in bill(contract, contract.starts_at, contract.ends_at):
        if line.what == "minimum":
            wallet = ledger.get_account(tx, f"tenant:{contract.tenant_id}:wallet")
            revenue = ledger.get_account(tx, f"tenant:{contract.tenant_id}:revenue")
            transfer = Transfer(
                id=minimum_id(contract.id),
                debit_account=wallet.id,
                credit_account=revenue.id,
                amount=line.amount,
                reason="minimum",
                happened_at=line.due_at,
            )
            ledger.post(tx, transfer, now=now)


def _settle(db: Database, found: Reservation, *, now: datetime) -> None:
    with db.transaction() as tx:
        blocks = reservations.open_blocks(tx, found.id)
        price = market.get_price(tx, found.price_id)
        held = reservations.count_blocks(tx, found.id)
    left = len(blocks) + max(found.blocks - held, 0)
    for number, hold_id in blocks:
        end = found.block_end(number)
        if end > now:
            break
        usage = Usage(
            id=derived_id(found.id, "usage", number),
            source=f"reservation:{found.id}",
            sequence=number,
            tenant_id=found.tenant_id,
            reservation_id=found.id,
            gpu_seconds=found.gpus * found.block_seconds(number),
            outcome=Outcome.COMPLETED,
            happened_at=end,
        )
        line = Line(price=price, quantity=usage.gpu_seconds)
        with db.transaction("reservation.settle") as tx:
            store.settle(tx, usage, [line], hold_id=hold_id, now=now)
            if found.contract_id is not None:
                _give_back(tx, found, end, now=now)
            reservations.close_block(tx, found.id, number)
        left -= 1
    if not left and now >= found.ends_at:
        with db.transaction() as tx:
            if not reservations.drawn_gpus(tx, found.id):
                reservations.end(tx, found.id)


def given_back_id(reservation_id: UUID, line: BillLine) -> UUID:
    """Return the id of the credit for a line of what was late, or taken back."""
    assert line.begins_at is not None
    begins = line.begins_at.isoformat()
    if line.broken is None:
        return derived_id(reservation_id, "late", begins)
    return derived_id(line.broken.id, "broken", begins)


def _give_back(tx: Tx, found: Reservation, day_end: datetime, *, now: datetime) -> None:
    """Credit what of one day of a contract's step is not owed, since GPUs were not there."""
    assert found.contract_id is not None
    signed = contracts.get_contract(tx, found.contract_id)
    for line in given_back(signed, found.starts_at, day_end):
        assert line.begins_at is not None
        assert line.ends_at is not None
        gone = None if line.broken is None else line.broken.lease_id
        broken = Broken(
            transfer_id=given_back_id(found.id, line),
            tenant_id=found.tenant_id,
            pool=found.pool,
            lease=None if gone is None else leases.get(tx, LeaseId(gone)),
            reservation_id=found.id,
            gpus=line.gpus,
            broken_at=line.begins_at,
            promised_until=line.ends_at,
            percent=signed.late_percent if line.broken is None else signed.shortfall_percent,
            price_id=found.price_id,
            amount=-line.amount,
        )
        give(tx, broken, now=now)


def _credit_lease(tx: Tx, found: Reservation, lease: Lease, *, now: datetime) -> None:
    """Credit what was left of a window when a lease on it gave way; its GPUs are promised no more."""
    broken_at = max(lease.noticed_at or lease.since, found.starts_at)
    _give(tx, found, credit_id(lease.id), lease, lease.gpus, broken_at=broken_at, now=now)


def _credit_wait(tx: Tx, reservation_id: UUID, *, now: datetime) -> None:
    """Credit the GPUs for which a tenant has waited for longer than anybody's notice takes."""
    found = reservations.lock(tx, reservation_id)
    if found.asked_at is None:
        return
    # What was never there of a contract is late: it costs less for it, and is still to come.
    late = found.contract_id is not None and deliveries.most_delivered(tx, found.id) < found.gpus
    gpus = found.gpus - found.lost_gpus - reservations.drawn_gpus(tx, found.id)
    if late or gpus <= 0:
        reservations.set_asked(tx, found.id, None)
        return
    id_ = derived_id(found.id, "credit", found.asked_at.isoformat())
    _give(tx, found, id_, None, gpus, broken_at=found.asked_at, now=now)


def _give(
    tx: Tx,
    found: Reservation,
    id_: UUID,
    lease: Lease | None,
    gpus: int,
    *,
    broken_at: datetime,
    now: datetime,
) -> None:
    if found.contract_id is not None:
        if found.credit_percent or lease is None:
            _note_break(tx, found, id_, lease, gpus, broken_at=broken_at, now=now)
        return
    rate = market.get_price(tx, found.price_id).rate
    amount = broken_credit(
        rate, gpus=gpus, percent=found.credit_percent, broken_at=broken_at, until=found.ends_at
    )
    if not amount.nanos:
        if lease is None:
            reservations.lose(tx, found.id, gpus)
        return
    broken = Broken(
        transfer_id=id_,
        tenant_id=found.tenant_id,
        pool=found.pool,
        lease=lease,
        reservation_id=found.id,
        gpus=gpus,
        broken_at=broken_at,
        promised_until=found.ends_at,
        percent=found.credit_percent,
        price_id=found.price_id,
        amount=amount,
    )
    if give(tx, broken, now=now):
        reservations.lose(tx, found.id, gpus)
        log.info("reservation.broken", extra={"reservation": found.id, "gpus": gpus})


def _note_break(
    tx: Tx,
    found: Reservation,
    id_: UUID,
    lease: Lease | None,
    gpus: int,
    *,
    broken_at: datetime,
    now: datetime,
) -> None:
    """Record that GPUs of a contract were taken back; each day that is charged credits them."""
    gone = None if lease is None else lease.id
    if not contracts.note_break(tx, found, id_, gpus=gpus, lease_id=gone, at=broken_at, now=now):
        return
    log.info("reservation.broken", extra={"reservation": found.id, "gpus": gpus})
    # Of what was charged before this was seen it is credited now.
    for block in range(found.blocks):
        if broken_at < found.block_end(block) <= now:
            _give_back(tx, found, found.block_end(block), now=now)
