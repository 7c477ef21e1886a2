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
from sublet.core.money import Rate
from sublet.engine.port import InternalJob
from sublet.fleet.pool import Demand, Pool
from sublet.fleet.topology import Topology
from sublet.leases import reclaim, store, terms
from sublet.leases.known import know
from sublet.leases.lease import (
    HOLDING,
    Lease,
    LeaseId,
    State,
)
from sublet.leases.reclaim import Losses
from sublet.leases.store import Spec
from sublet.leases.terms import RoomNow
from sublet.market import bids, scales
from sublet.market import store as market
from sublet.market.bids import Bids
from sublet.market.price import Tier, lease_sku
from sublet.planner.surplus import (
    Pressure,
    missing_for_windows,
    missing_gpus,
)
from sublet.tenants.tenant import Tenant

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
    return know(tx, [pool], jobs, firm=(), now=now)[pool.name].pressure


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
    check_bids(pool, rate, asked, start=start, length=length, firm=firm)


def check_bids(
    pool: Pool,
    rate: Rate,
    asked: Bids | None,
    *,
    start: datetime,
    length: timedelta | None,
    firm: timedelta,
) -> None:
    """Do what `check_price` does, with bid prices that were found before.

    Raises:
        Refused: as `check_price`.
    """
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
    found = market.find_terms(tx, lease_sku(pool.name, tier), tenant_id=tenant.id, at=now)
    scale = scales.find_scale(tx, pool.name, at=now)
    return scales.by_notice(tx, sold_at(found, pool, tier), scale, notice, now=now)


def sold_at(found: market.Terms | None, pool: Pool, tier: Tier) -> market.Terms:
    """Raises Refused: it has no price, so is not sold."""
    if found is None:
        raise Refused(f"{tier} leases of {pool.name} have no price, so are not sold")
    return found


def room_now(
    tx: Tx, pool: Pool, jobs: Sequence[InternalJob], *, firm: timedelta, now: datetime
) -> RoomNow:
    """Return what of `pool` can be sold at this instant, and be promised for `firm`."""
    known = know(tx, [pool], jobs, firm=[pool.name] if firm else (), now=now)[pool.name]
    return known.room(firm=firm, now=now)


def insert_new(tx: Tx, lease: Lease, spec: Spec, *, now: datetime) -> None:
    """Raises Invalid: its id was taken for something else, just now."""
    if not store.insert(tx, [(lease, spec)], now=now):
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
    demands: Mapping[str, Demand],
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
        leaving = sum(lease.gpus for lease in of_pool if _leaves(lease, now))
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


def _leaves(lease: Lease, now: datetime) -> bool:
    """Say whether it is going anyway: told to, or its time is over."""
    over = lease.ends_at is not None and lease.ends_at <= now
    return lease.state in HOLDING and (
        lease.state is State.DRAINING or lease.release_asked is not None or over
    )


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
