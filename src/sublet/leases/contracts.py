"""Contracts: sign, end and renew them; in Postgres, each step as a reservation."""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Database, Tx, one
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.ids import derived_id
from sublet.core.money import Money
from sublet.fleet import comings
from sublet.fleet import store as fleet
from sublet.fleet.pool import Pool
from sublet.leases import reservations, store, terms
from sublet.leases.contract import Break, Contract, Delivery, Step
from sublet.leases.reservation import DAY_SECONDS, Reservation, of_reservation
from sublet.leases.store import QUERIES
from sublet.ledger import store as ledger
from sublet.market import service as pricing
from sublet.market import store as market
from sublet.market.floor import below
from sublet.market.price import Tier, lease_sku
from sublet.planner.firm import most_promised

log = logging.getLogger(__name__)

_DAY: Final = timedelta(seconds=DAY_SECONDS)


def sign(tx: Tx, contract: Contract, *, now: datetime, exception: str | None = None) -> Contract:
    """Set a contract's GPUs aside for all of its time, before anything else is sold of them.

    It may take more than the plan holds: that is between the operator and its planner. It never
    takes what is promised to somebody else, and it may take what is declared to come by the start of
    a step. Signing twice under one id signs once.

    Raises:
        NotFound: there is no such pool.
        Invalid: it can never be signed as written.
        Refused: some of its GPUs are promised to others by then; or a step's price is below the
            pool's floor, and no `exception` is named.
    """
    pool = fleet.lock_pool(tx, contract.pool)
    if (before := find(tx, contract.id)) is not None:
        if (before.tenant_id, before.steps, before.ends_at) != (
            contract.tenant_id, contract.steps, contract.ends_at,
        ):  # fmt: skip
            raise Invalid(f"id {contract.id} was already used for something else")
        return before
    contract.check(capacity=comings.capacity_of(tx, pool.name, pool.gpus, now=now), now=now)
    terms.notice_of(pool, contract.notice)
    for place, step in enumerate(contract.steps):
        terms.check_nodes(pool, step.gpus)
        _check_free(tx, pool, step.gpus, step.starts_at, contract.end_of(place), now=now)
    row = {
        "id": contract.id, "tenant_id": contract.tenant_id, "pool": pool.name,
        "name": contract.name, "starts_at": contract.starts_at, "ends_at": contract.ends_at,
        "signed_at": now, "notice_seconds": int(contract.notice.total_seconds()),
        "minimum_nanos": contract.minimum.nanos,
        "shortfall_percent": contract.shortfall_percent, "notice_days": contract.notice_days,
        "recall_days": contract.recall_days, "renewal_days": contract.renewal_days,
        "late_percent": contract.late_percent, "late_days": contract.late_days,
        "missing_percent": contract.missing_percent,
    }  # fmt: skip
    tx.execute(QUERIES["insert_contract"], row)
    for place, step in enumerate(contract.steps):
        _add_step(tx, contract, place, step, exception=exception, now=now)
    log.info("contract.signed", extra={"contract": contract.id, "gpus": contract.most_gpus})
    return contract


def _check_free(
    tx: Tx, pool: Pool, gpus: int, start: datetime, end: datetime, *, now: datetime
) -> None:
    promises = store.list_promised(tx, pool.name, now=now)
    promises += [of_reservation(sold) for sold in reservations.list_open(tx, pool.name)]
    capacity = comings.capacity_of(tx, pool.name, pool.gpus, now=now)
    free = min(
        capacity.at(begin) - most_promised(promises, begin, until)
        for begin, until in capacity.pieces(start, end)
    )
    if gpus > free:
        raise Refused(
            f"{gpus} GPUs of {pool.name} were asked for from {start:%Y-%m-%d %H:%M} until"
            f" {end:%Y-%m-%d %H:%M} UTC, and {max(free, 0)} are not promised to others then"
        )


def _add_step(
    tx: Tx, contract: Contract, place: int, step: Step, *, exception: str | None, now: datetime
) -> None:
    sku = lease_sku(contract.pool, Tier.CONTRACT)
    floor = pricing.find_floor(tx, contract.pool)
    low = floor is not None and below(step.rate, floor.rate)
    price = pricing.set_price(
        tx, sku, step.rate, exception=exception if low else None, now=now,
        valid_from=max(step.starts_at, now), tenant_id=contract.tenant_id,
    )  # fmt: skip
    reserved = lease_sku(contract.pool, Tier.RESERVED)
    listed = market.find_terms(tx, reserved, tenant_id=contract.tenant_id, at=now)
    sold = Reservation(
        id=derived_id(contract.id, "step", place),
        tenant_id=contract.tenant_id,
        pool=contract.pool,
        gpus=step.gpus,
        starts_at=step.starts_at,
        ends_at=contract.end_of(place),
        notice=contract.notice,
        credit_percent=contract.shortfall_percent,
        price_id=price.id,
        list_price_id=price.id if listed is None else listed.listed.id,
        booked_at=now,
        contract_id=contract.id,
        block_length=DAY_SECONDS,
    )
    reservations.insert(tx, sold, None)


def find(tx: Tx, id_: UUID) -> Contract | None:
    row = one(tx, QUERIES["get_contract"], {"id": id_})
    return None if row is None else _contract(tx, row)


def get_contract(tx: Tx, id_: UUID, *, tenant_id: UUID | None = None) -> Contract:
    """Raises NotFound: there is no such contract, or it is another tenant's."""
    found = find(tx, id_)
    if found is None or (tenant_id is not None and found.tenant_id != tenant_id):
        raise NotFound(f"there is no contract {id_}")
    return found


def list_of(tx: Tx, tenant_id: UUID | None) -> list[Contract]:
    """Return a tenant's contracts, or everybody's (None), newest first."""
    rows = tx.execute(QUERIES["list_contracts"], {"tenant_id": tenant_id}).fetchall()
    return [_contract(tx, row) for row in rows]


def list_open(tx: Tx) -> list[Contract]:
    """Return the contracts of which not all is charged yet."""
    return [_contract(tx, row) for row in tx.execute(QUERIES["list_open_contracts"]).fetchall()]


def steps_of(tx: Tx, id_: UUID) -> list[Reservation]:
    """Return a contract's steps as they are sold, in order."""
    rows = tx.execute(QUERIES["list_steps"], {"id": id_}).fetchall()
    return [reservations.from_row(row) for row in rows]


def end_early(tx: Tx, id_: UUID, who: str, *, tenant_id: UUID | None, now: datetime) -> Contract:
    """End a contract before its time, by the tenant's notice or the operator's right of recall.

    Raises:
        NotFound: there is no such contract.
        Refused: it is over, was ended before, or the operator has no right to.
    """
    one(tx, QUERIES["lock_contract"], {"id": id_})
    found = get_contract(tx, id_, tenant_id=tenant_id)
    at = found.end_by(who, now)
    by = "late" if who == "tenant" and found.is_too_late(now) else who
    _move_end(tx, found, at, by, now=now)
    log.info("contract.ended_early", extra={"contract": id_, "by": by})
    return get_contract(tx, id_)


def _move_end(tx: Tx, contract: Contract, at: datetime, who: str | None, *, now: datetime) -> None:
    tx.execute(QUERIES["end_contract"], {"id": contract.id, "ends_at": at, "ended_by": who})
    for step in steps_of(tx, contract.id):
        if step.starts_at >= at:
            for _, hold_id in reservations.open_blocks(tx, step.id):  # its first day was held
                ledger.void(tx, hold_id, now=now)
            tx.execute(QUERIES["drop_blocks"], {"id": step.id})
            tx.execute(QUERIES["drop_step"], {"id": step.id})
        elif step.ends_at > at:
            tx.execute(QUERIES["move_end"], {"id": step.id, "ends_at": at})


def renew_due(db: Database, *, now: datetime) -> None:
    """Let contracts go on whose time to be ended has passed.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        due = [
            found
            for found in list_open(tx)
            if found.renewal_days
            and found.ended_by is None
            and found.ends_at - found.notice_days * _DAY <= now < found.ends_at
        ]
    for found in due:
        try:
            with db.transaction("contract.renew") as tx:
                one(tx, QUERIES["lock_contract"], {"id": found.id})
                contract = get_contract(tx, found.id)
                if contract.ends_at != found.ends_at or contract.ended_by is not None:
                    continue
                pool = fleet.lock_pool(tx, contract.pool)
                until = contract.ends_at + contract.renewal_days * _DAY
                last = steps_of(tx, contract.id)[-1]
                _check_free(tx, pool, last.gpus, last.ends_at, until, now=now)
                tx.execute(
                    QUERIES["end_contract"],
                    {"id": contract.id, "ends_at": until, "ended_by": None},
                )
                tx.execute(QUERIES["move_end"], {"id": last.id, "ends_at": until})
        except Refused as error:
            log.warning("contract.not_renewed", extra={"contract": found.id, "detail": str(error)})


def note_break(
    tx: Tx, step: Reservation, id_: UUID, *, gpus: int, lease_id: UUID | None, at: datetime,
    now: datetime,
) -> bool:  # fmt: skip
    """Record that GPUs of a step were taken back; False when that is on record.

    They are part of it no more, and are credited day by day.
    """
    row = {
        "id": id_, "reservation_id": step.id, "contract_id": step.contract_id,
        "lease_id": lease_id, "gpus": gpus, "at": at, "now": now,
    }  # fmt: skip
    if one(tx, QUERIES["insert_break"], row) is None:
        return False
    reservations.lose(tx, step.id, gpus)
    return True


def close(tx: Tx, id_: UUID) -> None:
    """Note that all of it is charged."""
    tx.execute(QUERIES["close_contract"], {"id": id_})


def _contract(tx: Tx, row: Mapping[str, Any]) -> Contract:
    steps = steps_of(tx, row["id"])
    places = {step.id: place for place, step in enumerate(steps)}
    delivered = tx.execute(QUERIES["list_deliveries"], {"contract_id": row["id"]}).fetchall()
    broken = tx.execute(QUERIES["list_breaks"], {"contract_id": row["id"]}).fetchall()
    return Contract(
        id=row["id"],
        tenant_id=row["tenant_id"],
        pool=row["pool"],
        name=row["name"],
        steps=tuple(
            Step(
                starts_at=step.starts_at,
                gpus=step.gpus,
                rate=market.get_price(tx, step.price_id).rate,
            )
            for step in steps
        ),
        ends_at=row["ends_at"],
        signed_at=row["signed_at"],
        notice=timedelta(seconds=row["notice_seconds"]),
        minimum=Money(int(row["minimum_nanos"])),
        shortfall_percent=row["shortfall_percent"],
        notice_days=row["notice_days"],
        recall_days=row["recall_days"],
        renewal_days=row["renewal_days"],
        late_percent=row["late_percent"],
        late_days=row["late_days"],
        missing_percent=row["missing_percent"],
        deliveries=tuple(
            Delivery(place=places[one["reservation_id"]], at=one["happened_at"], gpus=one["gpus"])
            for one in delivered
            if one["reservation_id"] in places
        ),
        breaks=tuple(
            Break(
                id=one["id"],
                place=places[one["reservation_id"]],
                at=one["happened_at"],
                gpus=one["gpus"],
                lease_id=one["lease_id"],
            )
            for one in broken
            if one["reservation_id"] in places
        ),
        ended_by=row["ended_by"],
        closed=row["closed"],
    )
