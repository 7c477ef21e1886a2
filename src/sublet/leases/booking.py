"""Booking reserved windows, and drawing leases on them: load, decide, apply."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, Refused
from sublet.core.ids import derived_id, new_id
from sublet.core.money import Rate
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.fleet.pool import Pool
from sublet.leases import resales, reservations, service, store, terms, webhooks
from sublet.leases import reservation as rules
from sublet.leases.lease import Lease, LeaseId, Move, State
from sublet.leases.reservation import Reservation, check_window, of_reservation
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import quotes
from sublet.market import store as market
from sublet.market.price import Tier
from sublet.planner import store as plans
from sublet.planner.firm import Room, most_promised, read_firm, window_room
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant, TenantId

log = logging.getLogger(__name__)

# As for the minutes of leases: the row of the block leads us back to its hold.
_HOLD_FOR = timedelta(days=36_525)


class NotFree(Refused):
    """Its GPUs are reserved, and somebody who must leave is not gone yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What a tenant wants to reserve."""

    id: UUID | None = None  # the caller's, when it may ask twice
    pool: str
    gpus: int
    starts_at: datetime
    ends_at: datetime
    notice: timedelta | None = None
    spec: Spec | None = None  # to be started by itself
    quote: UUID | None = None


def room_of(tx: Tx, pool: Pool, start: datetime, end: datetime, *, now: datetime) -> Room:
    """Return how many more GPUs of `pool` may be promised for [start, end)."""
    found = plans.get_plan(tx, pool.name)
    firm = None if found is None else read_firm(found.made_at, found.plan)
    promises = store.list_promised(tx, pool.name, now=now)
    promises += [of_reservation(sold) for sold in reservations.list_open(tx, pool.name)]
    room = window_room(firm, start=start, end=end, gpus=pool.gpus, promises=promises, now=now)
    most = pool.gpus - pool.policy.reserve
    if pool.policy.lending_limit is not None:
        most = min(most, pool.policy.lending_limit)
    left = max(most - most_promised(promises, start, end), 0)
    if left < room.gpus:
        return Room(gpus=left, why=f"the pool's policy leaves {left}")
    return room


def check_room(
    tx: Tx, pool: Pool, start: datetime, end: datetime, *, gpus: int, now: datetime
) -> None:
    """Hold a window to what can be sold.

    Raises:
        Invalid: it can never be sold as written.
        Refused: the plan or the policy does not hold it; says what would be possible instead.
    """
    terms.check_nodes(pool, gpus)
    check_window(pool, start, end, gpus=gpus, now=now)
    room = room_of(tx, pool, start, end, now=now)
    if gpus > room.gpus:
        raise Refused(
            f"not firm: {gpus} of {pool.name} were asked for from {start:%Y-%m-%d %H:%M:%S} until"
            f" {end:%Y-%m-%d %H:%M:%S} UTC and {room.gpus} can be promised: {room.why}"
        )


def book(tx: Tx, tenant: Tenant, booking: Booking, *, now: datetime) -> Reservation:
    """Sell a window: set its GPUs aside from its start to its end, and hold all of its price.

    Asking twice with one id and the same contents gives the same reservation.

    Raises:
        NotFound: there is no such pool or quote.
        Invalid: it can never be sold as written.
        Refused: the plan or the policy does not hold it, or the quote is used up.
        Unpaid: the wallet cannot pay for all of it.
    """
    if booking.spec is not None and booking.spec.network and not tenant.network_allowed:
        raise Refused("this tenant's workloads may not use the network; ask the operator")
    pool = fleet.lock_pool(tx, booking.pool)
    id_ = booking.id or new_id()
    notice = terms.notice_of(pool, booking.notice)
    quoted = None
    if booking.quote is None:
        price = service.prices_of(tx, pool, Tier.RESERVED, notice=notice, tenant=tenant, now=now)
    else:
        quoted = quotes.lock(tx, booking.quote, tenant_id=tenant.id)
        quoted.check(id_, now=now)
        price = market.Terms(contracted=quoted.price, listed=quoted.list_price)
    sold = Reservation(
        id=id_,
        tenant_id=tenant.id,
        pool=pool.name,
        gpus=booking.gpus,
        starts_at=booking.starts_at,
        ends_at=booking.ends_at,
        notice=notice,
        credit_percent=pool.policy.credit_percent,
        price_id=price.contracted.id,
        list_price_id=price.listed.id,
        booked_at=now,
        has_workload=booking.spec is not None,
    )
    if (before := _before(tx, sold, booking)) is not None:
        return before
    check_room(tx, pool, sold.starts_at, sold.ends_at, gpus=sold.gpus, now=now)
    if quoted is None:
        length = sold.ends_at - sold.starts_at
        service.check_price(
            tx, pool, price.contracted.rate, start=sold.starts_at, length=length, firm=length,
            now=now,
        )  # fmt: skip
    else:
        quotes.accept(tx, quoted, sold=sold.id, now=now)
    reservations.insert(tx, sold, booking.spec)
    for block in range(sold.blocks):
        hold_block(tx, sold, block, price.contracted.rate, now=now)
    log.info("reservation.booked", extra={"reservation": sold.id, "tenant": tenant.id})
    return sold


def hold_block(tx: Tx, sold: Reservation, block: int, rate: Rate, *, now: datetime) -> None:
    """Hold the money for one block of a window; doing it again changes nothing.

    Raises:
        Unpaid: the wallet cannot pay for it.
    """
    wallet = ledger.get_account(tx, f"tenant:{sold.tenant_id}:wallet")
    revenue = ledger.get_account(tx, f"tenant:{sold.tenant_id}:revenue")
    transfer = Transfer(
        id=derived_id(sold.id, "block", block),
        debit_account=wallet.id,
        credit_account=revenue.id,
        amount=rate.charge_most(sold.gpus * sold.block_seconds(block)),
        reason="lease",
        happened_at=now,
    )
    holder = f"reservation:{sold.id}"
    ledger.hold(tx, transfer, holder=holder, expires_at=now + _HOLD_FOR, now=now)
    reservations.add_block(tx, sold.id, block, transfer.id)


def _before(tx: Tx, sold: Reservation, booking: Booking) -> Reservation | None:
    if booking.id is None:
        return None
    found = reservations.find(tx, sold.id)
    if found is None:
        return None
    same = all(
        getattr(found, name) == getattr(sold, name)
        for name in ("tenant_id", "pool", "gpus", "starts_at", "ends_at")
    )
    spec = (
        None if booking.spec is None else replace(booking.spec, command=list(booking.spec.command))
    )
    if not same or reservations.get_spec(tx, sold.id) != spec:
        raise Invalid(f"id {sold.id} was already used for something else")
    return found


def draw(
    tx: Tx, tenant: Tenant, request: Request, *, jobs: Sequence[InternalJob], now: datetime
) -> Lease:
    """Lease GPUs of a reservation while it lasts. The reservation pays for them.

    Asking twice with one id and the same contents gives the same lease.

    Raises:
        NotFound: there is no such reservation.
        Invalid: it can never be leased as written.
        Refused: it has not begun, is over, or has no GPUs left.
        NotFree: somebody who must leave them is not gone yet.
    """
    assert request.reservation is not None
    service.check_size(request.gpus, request.max_duration)
    if request.resumable:
        raise Invalid("resumable: what is taken back of a reservation is credited, and stays away")
    if request.spec.network and not tenant.network_allowed:
        raise Refused("this tenant's workloads may not use the network; ask the operator")
    found = reservations.get_reservation(tx, request.reservation, tenant_id=tenant.id)
    pool = fleet.lock_pool(tx, found.pool)
    found = reservations.lock(tx, found.id, tenant_id=tenant.id)
    if request.id is not None and (before := store.find(tx, request.id)) is not None:
        asked = replace(request, pool=found.pool, tier=found.tier)
        return service.repeated(tx, before, tenant, asked)
    drawn, listed = reservations.drawn_gpus(tx, found.id), resales.listed_gpus(tx, found.id)
    found.check_draw(request.gpus, drawn=drawn, listed=listed, now=now)
    if terms.is_exclusive(pool, found.gpus):
        terms.check_nodes(pool, request.gpus)
    pressure = service.pressure_of(tx, pool, jobs, now=now)
    used = pressure.internal_running + pressure.internal_pending + pressure.leased
    if request.gpus > pool.gpus - used:
        raise NotFree(
            f"{max(pool.gpus - used, 0)} of {request.gpus} GPUs are free yet; those in the way"
            " were told to go. Ask again in a moment: what is not free when their notice is over is"
            " credited"
        )
    lease = Lease(
        id=request.id or LeaseId(new_id()),
        tenant_id=tenant.id,
        pool=pool.name,
        gpus=request.gpus,
        tier=found.tier,
        notice=found.notice,
        price_id=found.price_id,
        list_price_id=found.list_price_id,
        max_duration=request.max_duration,
        requested_at=now,
        state=State.REQUESTED,
        since=now,
        version=1,
        credit_percent=found.credit_percent,
        reservation_id=found.id,
        until=found.ends_at,
        exclusive=terms.is_exclusive(pool, request.gpus),
    ).move(Move(to=State.ADMITTED, at=now))
    service.insert_new(tx, lease, request.spec, now=now)
    if request.webhook is not None:
        webhooks.add(tx, lease.id, request.webhook)
    if found.asked_at is not None:
        reservations.set_asked(tx, found.id, None)
    log.info("lease.drawn", extra={"lease": lease.id, "reservation": found.id})
    return lease


def wait_for(tx: Tx, reservation_id: UUID, *, now: datetime) -> None:
    """Note since when a tenant waits for GPUs of a window."""
    found = reservations.lock(tx, reservation_id)
    if found.asked_at is None:
        reservations.set_asked(tx, found.id, now)


def start_due(db: Database, *, jobs: Sequence[InternalJob], now: datetime) -> list[Lease]:
    """Start the workloads of windows that have begun.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        due = [
            found
            for found in reservations.list_open(tx)
            if found.has_workload and not found.started and found.starts_at <= now < found.ends_at
        ]
    started = []
    for found in due:
        try:
            with db.transaction("reservation.start") as tx:
                spec = reservations.get_spec(tx, found.id)
                assert spec is not None
                request = Request(
                    id=LeaseId(derived_id(found.id, "start")),
                    pool=found.pool,
                    gpus=found.gpus,
                    tier=Tier.RESERVED,
                    max_duration=service.LONGEST,
                    spec=spec,
                    reservation=found.id,
                )
                tenant = tenants.get_tenant(tx, TenantId(found.tenant_id))
                started.append(draw(tx, tenant, request, jobs=jobs, now=now))
                reservations.set_started(tx, found.id)
        except NotFree as error:
            with db.transaction() as tx:
                wait_for(tx, found.id, now=found.starts_at)
            log.info("reservation.waits", extra={"reservation": found.id, "detail": str(error)})
        except (Refused, Invalid, Conflict) as error:
            log.warning(
                "reservation.not_started", extra={"reservation": found.id, "detail": str(error)}
            )
    return started


def aside(tx: Tx, pools: Sequence[Pool], *, now: datetime) -> Mapping[str, int]:
    """Return how many GPUs of each pool windows need, now or soon, that they do not use."""
    return {
        pool.name: store.standing(tx, pool.name, now=now, soon=now + rules.lead(pool)).aside
        for pool in pools
    }
