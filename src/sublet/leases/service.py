"""Leases: load, decide, apply."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id
from sublet.core.money import Rate
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.fleet.pool import Demand, Pool, demand_by_pool, demand_of
from sublet.fleet.topology import Topology
from sublet.leases import blocks, reclaim, resales, reservations, store, terms, webhooks
from sublet.leases.lease import (
    HOLDING,
    Lease,
    LeaseId,
    Move,
    State,
)
from sublet.leases.reclaim import Losses
from sublet.leases.reservation import lead, of_reservation
from sublet.leases.store import Spec, Standing
from sublet.leases.terms import RoomNow
from sublet.market import bids, quotes, scales
from sublet.market import store as market
from sublet.market.price import Tier, lease_sku
from sublet.planner import store as plans
from sublet.planner.firm import firm_room, most_promised, read_firm
from sublet.planner.surplus import (
    Pressure,
    missing_for_windows,
    missing_gpus,
    sellable_gpus,
)
from sublet.tenants.tenant import Tenant, TenantKind

log = logging.getLogger(__name__)

LONGEST: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a tenant asks for."""

    id: LeaseId | None = None  # the caller's, when it may ask twice
    pool: str
    gpus: int
    tier: Tier
    max_duration: timedelta
    spec: Spec
    reservation: UUID | None = None  # on which it is drawn
    quote: UUID | None = None  # whose price holds; the rest is as it says
    notice: timedelta | None = None  # None: the longest that the pool sells
    resumable: bool = False
    resumes: LeaseId | None = None  # set where a paused lease comes back
    webhook: str | None = None  # https address that is told of its notice


def pressure_of(tx: Tx, pool: Pool, jobs: Sequence[InternalJob], *, now: datetime) -> Pressure:
    """Return how `pool` stands: what the cluster says, and what leases hold."""
    return _pressure(pool, jobs, store.standing(tx, pool.name, now=now, soon=now + lead(pool)))


def _pressure(pool: Pool, jobs: Sequence[InternalJob], stands: Standing) -> Pressure:
    demand = demand_of(jobs, pool.name)
    return Pressure(
        gpus=pool.gpus,
        internal_running=demand.running,
        internal_pending=demand.pending,
        leased=stands.held,
        lendable=pool.policy.lendable,
        lending_limit=pool.policy.lending_limit,
        aside=stands.aside,
        reserve=pool.policy.reserve,
    )


def admit(
    tx: Tx,
    tenant: Tenant,
    request: Request,
    *,
    jobs: Sequence[InternalJob],
    now: datetime,
) -> Lease:
    """Sell a lease: set its GPUs and its first minute's money aside, or neither.

    Asking twice with one id and the same contents gives the same lease. Nothing is sold for less
    than its GPUs are worth to those who may come later, as far as that is known.

    Raises:
        NotFound: there is no such pool.
        Invalid: it can never be sold as written.
        Refused: there is no surplus for it now, or the tenant may not have it.
        Unpaid: the wallet cannot pay for the first minute.
    """
    check_size(request.gpus, request.max_duration)
    if request.tier.drawn:
        raise Invalid(
            f"what is {request.tier} is reserved first (POST /v1/reservations, or by contract), then"
            " leased from: name the `reservation`"
        )
    if request.spec.network and not tenant.network_allowed:
        raise Refused("this tenant's workloads may not use the network; ask the operator")
    # The lock makes admissions of one pool take turns, so none sells what another just sold.
    pool = fleet.lock_pool(tx, request.pool)
    if request.id is not None and (before := store.find(tx, request.id)) is not None:
        return repeated(tx, before, tenant, request)
    id_ = request.id or LeaseId(new_id())
    notice = terms.notice_of(pool, request.notice)
    quoted = None
    if request.quote is None:
        price = prices_of(tx, pool, request.tier, notice=notice, tenant=tenant, now=now)
    else:
        quoted = quotes.lock(tx, request.quote, tenant_id=tenant.id)
        quoted.check(id_, now=now)
        price = market.Terms(contracted=quoted.price, listed=quoted.list_price)
    firm = terms.firm_for(pool, request.tier, request.max_duration)
    room = room_now(tx, pool, jobs, firm=firm, now=now)
    terms.check_room(pool, gpus=request.gpus, firm=firm, room=room, now=now)
    # What was quoted is held to, also where the floor or the bids have risen since.
    if tenant.kind is not TenantKind.HOUSE and quoted is None:
        # What comes back was sold before: it is not weighed again.
        length = None if request.resumes is not None else request.max_duration
        check_price(tx, pool, price.contracted.rate, start=now, length=length, firm=firm, now=now)
    taken = resales.taken_for(
        tx, pool.name, gpus=request.gpus - room.own, rate=price.contracted.rate, now=now
    )
    lease = Lease(
        id=id_,
        tenant_id=tenant.id,
        pool=pool.name,
        gpus=request.gpus,
        tier=request.tier,
        notice=notice,
        price_id=price.contracted.id,
        list_price_id=price.listed.id,
        max_duration=request.max_duration,
        requested_at=now,
        state=State.REQUESTED,
        since=now,
        version=1,
        firm=firm,
        credit_percent=pool.policy.credit_percent,
        resumable=request.resumable,
        resumes=request.resumes,
    ).move(Move(to=State.ADMITTED, at=now))
    insert_new(tx, lease, request.spec, now=now)
    resales.use(tx, lease, taken)
    if request.webhook is not None:
        webhooks.add(tx, lease.id, request.webhook)
    if quoted is not None:
        quotes.accept(tx, quoted, sold=lease.id, now=now)
    failpoint("lease.admit.before_hold")
    blocks.hold_block(tx, lease, 0, rate=price.contracted.rate, now=now)
    failpoint("lease.admit.after_hold")
    log.info("lease.admitted", extra={"lease": lease.id, "tenant": tenant.id, "gpus": lease.gpus})
    return lease


def check_price(
    tx: Tx,
    pool: Pool,
    rate: Rate,
    *,
    start: datetime,
    length: timedelta | None,
    firm: timedelta,
    now: datetime,
) -> None:
    """Hold a price to the pool's floor, and to the bid prices of its window.

    Args:
        tx: any transaction.
        pool: whose.
        rate: what would be paid.
        start: of the window.
        length: of it; None: it is not held to bid prices.
        firm: for how long it is promised: nothing is of an interruptible lease.
        now: the present instant.

    Raises:
        Refused: it is below one of them.
    """
    asked = None if length is None else bids.find(tx, pool.name, now=now)
    bid = None
    if asked is not None and length is not None:
        bid = asked.least(start=start, length=length, firm=bool(firm))
    elif length is not None:
        log.info("price.by_book", extra={"pool": pool.name})  # too little demand was seen
    terms.check_price(pool, rate, bid=bid)


def check_size(gpus: int, duration: timedelta) -> None:
    """Raises Invalid: no lease can be so large or so long."""
    if not 1 <= gpus <= 1_000_000:
        raise Invalid(f"gpus must be at least 1, not {gpus}")
    if not timedelta(seconds=1) <= duration <= LONGEST:
        raise Invalid(f"max_seconds must lie in 1…{int(LONGEST.total_seconds())}")


def prices_of(
    tx: Tx, pool: Pool, tier: Tier, *, notice: timedelta, tenant: Tenant, now: datetime
) -> market.Terms:
    """Return what a tenant pays for a tier now, with so long a notice.

    Raises:
        Refused: it has no price, so is not sold.
    """
    sku = lease_sku(pool.name, tier)
    if (found := market.find_terms(tx, sku, tenant_id=tenant.id, at=now)) is None:
        raise Refused(f"{tier} leases of {pool.name} have no price, so are not sold")
    scale = scales.find_scale(tx, pool.name, at=now)
    return scales.by_notice(tx, found, scale, notice, now=now)


def room_now(
    tx: Tx, pool: Pool, jobs: Sequence[InternalJob], *, firm: timedelta, now: datetime
) -> RoomNow:
    """Return what of `pool` can be sold at this instant, and be promised for `firm`."""
    stands = store.standing(tx, pool.name, now=now, soon=now + lead(pool))
    pressure = _pressure(pool, jobs, stands)
    # What a window's tenant may want back at any time can be promised to nobody.
    own = sellable_gpus(replace(pressure, aside=stands.aside + stands.returned))
    if not firm:
        return RoomNow(sellable=sellable_gpus(pressure), firm=None, own=own)
    found = plans.get_plan(tx, pool.name)
    plan = None if found is None else read_firm(found.made_at, found.plan)
    promised = stands.promised
    if stands.windows:
        windows = [of_reservation(found) for found in reservations.list_open(tx, pool.name)]
        promised += most_promised(windows, now, now + firm)
    room = firm_room(plan, window=firm, gpus=pool.gpus, promised=promised, now=now)
    return RoomNow(sellable=own, firm=room, own=own)


def insert_new(tx: Tx, lease: Lease, spec: Spec, *, now: datetime) -> None:
    """Raises Invalid: its id was taken for something else, just now."""
    if not store.insert(tx, lease, spec, now=now):
        raise Invalid(f"id {lease.id} was already used for something else")


def repeated(tx: Tx, before: Lease, tenant: Tenant, request: Request) -> Lease:
    """Return what was asked for before under the same id.

    Raises:
        Invalid: it was something else.
    """
    same = (
        before.tenant_id == tenant.id
        and before.pool == request.pool
        and before.gpus == request.gpus
        and before.tier == request.tier
        and before.reservation_id == request.reservation
        and before.max_duration == request.max_duration
        and (request.notice is None or before.notice == request.notice)
        and (before.resumable or before.paused or not request.resumable)
        and store.get_spec(tx, before.id)
        == replace(request.spec, command=list(request.spec.command))
    )
    if not same:
        raise Invalid(f"id {before.id} was already used for something else")
    return before


def reclaim_all(
    leases: Sequence[Lease],
    *,
    pools: Sequence[Pool],
    jobs: Sequence[InternalJob],
    aside: Mapping[str, int],
    losses: Callable[[], Mapping[str, Losses]],
    now: datetime,
) -> list[LeaseId]:
    """Say which leases must give way so that every waiting internal job gets its GPUs.

    And those that must for reserved windows that start: of these none that is firm itself. All of
    them are chosen in one go, each once. `aside` says how many GPUs of each pool windows need that
    they do not use yet; `losses` is asked what is known of what is lost, should anybody have to go.
    """
    by_pool: dict[str, list[Lease]] = defaultdict(list)
    for lease in leases:
        by_pool[lease.pool].append(lease)
    demands = demand_by_pool(jobs)
    chosen: list[LeaseId] = []
    for pool in pools:
        of_pool = by_pool[pool.name]
        demand = demands.get(pool.name, Demand(running=0, pending=0))
        pressure = Pressure(
            gpus=pool.gpus,
            internal_running=demand.running,
            internal_pending=demand.pending,
            leased=sum(lease.gpus for lease in of_pool if lease.state in HOLDING),
            aside=aside.get(pool.name, 0),
            lendable=pool.policy.lendable,
            lending_limit=pool.policy.lending_limit,
        )
        leaving = sum(
            lease.gpus
            for lease in of_pool
            if lease.state is State.DRAINING
            or (lease.state in HOLDING and lease.release_asked is not None)
        )
        going: list[Lease] = []
        if missing := missing_gpus(pressure, leaving=leaving):
            known = losses().get(pool.name, reclaim.NOTHING_KNOWN)
            going = reclaim.choose(of_pool, gpus=missing, now=now, losses=known)
            leaving += sum(lease.gpus for lease in going)
        if missing := missing_for_windows(pressure, leaving=leaving):
            told = {lease.id for lease in going}
            known = losses().get(pool.name, reclaim.NOTHING_KNOWN)
            soft = [one for one in of_pool if not one.is_firm(now) and one.id not in told]
            going += reclaim.choose(soft, gpus=missing, now=now, losses=known)
        chosen += [lease.id for lease in going]
    return chosen


def losses_of(
    tx: Tx,
    leases: Sequence[Lease],
    *,
    topologies: Mapping[str, Topology],
    placed: Mapping[UUID, Sequence[str]],
    now: datetime,
) -> dict[str, Losses]:
    """Return what is known of the losses in each pool.

    Args:
        tx: any transaction.
        leases: that are live.
        topologies: of the pools, as far as the engine told.
        placed: the nodes that each lease is on, as far as it told.
        now: the present instant.
    """
    lately = store.reclaimed_lately(tx, since=now - reclaim.LATELY)
    wanted = {lease.price_id for lease in leases if lease.is_firm(now)}
    rates = {price_id: market.get_price(tx, price_id).rate for price_id in sorted(wanted)}
    return {
        pool: Losses(
            rates=rates,
            lately=lately.get(pool, {}),
            topology=topologies.get(pool, Topology()),
            placed=placed,
        )
        for pool in {lease.pool for lease in leases}
    }


def check_owner(tx: Tx, lease_id: LeaseId, tenant_id: UUID | None) -> Lease:
    """Return the lease if it is the tenant's, or for the operator (None) anyway.

    Raises:
        NotFound: no such lease, or another tenant's: it is not told apart.
    """
    lease = store.get(tx, lease_id)
    if tenant_id is not None and lease.tenant_id != tenant_id:
        raise NotFound(f"there is no lease {lease_id}")
    return lease
