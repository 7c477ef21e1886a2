"""Leases: load, decide, apply."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.failpoint import failpoint
from sublet.core.ids import new_id
from sublet.core.money import Rate
from sublet.engine.port import Engine, InternalJob, Notice, Observation, Workload
from sublet.fleet import store as fleet
from sublet.fleet.pool import Demand, Pool, demand_by_pool, demand_of
from sublet.leases import blocks, reclaim, reservations, store, terms
from sublet.leases.lease import (
    HOLDING,
    EndReason,
    Lease,
    LeaseId,
    Move,
    Start,
    State,
    Stop,
    decide,
)
from sublet.leases.reclaim import Losses
from sublet.leases.reservation import lead, of_reservation
from sublet.leases.store import Spec
from sublet.leases.terms import RoomNow
from sublet.market import quotes
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
_MESSAGES: Final[Mapping[EndReason, str]] = {
    EndReason.RELEASED: "You gave this lease back.",
    EndReason.EXPIRED: "This lease reached the end it was sold with.",
    EndReason.RECLAIMED: "An internal job needs these GPUs; save your work now.",
    EndReason.CREDIT_EXHAUSTED: "The wallet could not pay for the next minute.",
    EndReason.SHUTDOWN: "The operator is stopping this Sublet.",
}


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


def pressure_of(tx: Tx, pool: Pool, jobs: Sequence[InternalJob], *, now: datetime) -> Pressure:
    """Return how `pool` stands: what the cluster says, and what leases hold."""
    demand = demand_of(jobs, pool.name)
    return Pressure(
        gpus=pool.gpus,
        internal_running=demand.running,
        internal_pending=demand.pending,
        leased=store.held_gpus(tx, pool.name),
        lendable=pool.policy.lendable,
        lending_limit=pool.policy.lending_limit,
        aside=reservations.aside_gpus(tx, pool.name, now=now, soon=now + lead(pool)),
        reserve=pool.policy.reserve,
    )


def admit(
    tx: Tx,
    tenant: Tenant,
    request: Request,
    *,
    jobs: Sequence[InternalJob],
    now: datetime,
    bid: Rate | None = None,
) -> Lease:
    """Sell a lease: set its GPUs and its first minute's money aside, or neither.

    Asking twice with one id and the same contents gives the same lease. What a GPU-hour is worth
    to those who may come later is `bid`: nothing is sold for less.

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
    id_ = request.id or LeaseId(new_id())
    quoted = None
    if request.quote is None:
        price = prices_of(tx, pool, request.tier, tenant=tenant, now=now)
    else:
        quoted = quotes.lock(tx, request.quote, tenant_id=tenant.id)
        quoted.check(id_, now=now)
        price = market.Terms(contracted=quoted.price, listed=quoted.list_price)
    firm = terms.firm_for(pool, request.tier, request.max_duration)
    lease = Lease(
        id=id_,
        tenant_id=tenant.id,
        pool=pool.name,
        gpus=request.gpus,
        tier=request.tier,
        notice=terms.notice_of(pool, request.notice),
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
    )
    # Before the insert, so that it is not in it.
    room = room_now(tx, pool, jobs, firm=firm, now=now)
    if not store.insert(tx, lease, request.spec, now=now):
        return repeated(tx, lease, request.spec, request.notice)
    terms.check_room(pool, gpus=request.gpus, firm=firm, room=room, now=now)
    # What was quoted is held to, also where the floor or the bids have risen since.
    if tenant.kind is not TenantKind.HOUSE and quoted is None:
        terms.check_price(pool, price.contracted.rate, bid=bid)
    if quoted is not None:
        quotes.accept(tx, quoted, sold=lease.id, now=now)
    failpoint("lease.admit.before_hold")
    blocks.hold_block(tx, lease, 0, rate=price.contracted.rate, now=now)
    failpoint("lease.admit.after_hold")
    lease = lease.move(Move(to=State.ADMITTED, at=now))
    store.save(tx, lease, now=now)
    log.info("lease.admitted", extra={"lease": lease.id, "tenant": tenant.id, "gpus": lease.gpus})
    return lease


def check_size(gpus: int, duration: timedelta) -> None:
    """Raises Invalid: no lease can be so large or so long."""
    if not 1 <= gpus <= 1_000_000:
        raise Invalid(f"gpus must be at least 1, not {gpus}")
    if not timedelta(seconds=1) <= duration <= LONGEST:
        raise Invalid(f"max_seconds must lie in 1…{int(LONGEST.total_seconds())}")


def prices_of(tx: Tx, pool: Pool, tier: Tier, *, tenant: Tenant, now: datetime) -> market.Terms:
    """Return what a tenant pays for a tier now.

    Raises:
        Refused: it has no price, so is not sold.
    """
    sku = lease_sku(pool.name, tier)
    if (found := market.find_terms(tx, sku, tenant_id=tenant.id, at=now)) is None:
        raise Refused(f"{tier} leases of {pool.name} have no price, so are not sold")
    return found


def room_now(
    tx: Tx, pool: Pool, jobs: Sequence[InternalJob], *, firm: timedelta, now: datetime
) -> RoomNow:
    """Return what of `pool` can be sold at this instant, and be promised for `firm`."""
    sellable = sellable_gpus(pressure_of(tx, pool, jobs, now=now))
    if not firm:
        return RoomNow(sellable=sellable, firm=None)
    found = plans.get_plan(tx, pool.name)
    plan = None if found is None else read_firm(found.made_at, found.plan)
    windows = [of_reservation(found) for found in reservations.list_open(tx, pool.name)]
    promised = store.promised_gpus(tx, pool.name, now=now)
    promised += most_promised(windows, now, now + firm)
    room = firm_room(plan, window=firm, gpus=pool.gpus, promised=promised, now=now)
    return RoomNow(sellable=sellable, firm=room)


def repeated(tx: Tx, lease: Lease, spec: Spec, notice: timedelta | None) -> Lease:
    before = store.get(tx, lease.id)
    same = (
        before.tenant_id == lease.tenant_id
        and before.pool == lease.pool
        and before.gpus == lease.gpus
        and before.tier == lease.tier
        and before.max_duration == lease.max_duration
        and (notice is None or before.notice == notice)
        and (before.resumable or before.paused or not lease.resumable)
        and store.get_spec(tx, lease.id) == replace(spec, command=list(spec.command))
    )
    if not same:
        raise Invalid(f"id {lease.id} was already used for something else")
    return before


def advance(
    lease: Lease,
    *,
    db: Database,
    engine: Engine,
    clock: Clock,
    notice_url: str | None = None,
    tunnel_url: str | None = None,
) -> tuple[Lease, Observation]:
    """Take one lease as many steps as the present allows.

    The engine is called between short transactions, never inside one. Its calls are safe to
    repeat, so dying half way costs a repeat and nothing else.

    Returns:
        the lease as it is now, and what the engine showed last.

    Raises:
        Conflict: another worker moved the lease first; the next pass will see it.
        Unavailable: the engine or the database did not answer.
    """
    while True:
        # Asked before the clock, so that "running" holds for every instant until `now`.
        seen = engine.observe(lease.id)
        now = clock.now()
        match decide(lease, seen, now):
            case Move() as move:
                lease = _move(lease, move, db=db, now=now)
                if move.to is State.RUNNING:
                    # It may have run for longer than its first minute while nobody looked. It
                    # is paid for first; what comes next is decided then.
                    return lease, seen
            case Start():
                lease, started = _start(
                    lease, db=db, engine=engine, now=now, notice_url=notice_url,
                    tunnel_url=tunnel_url,
                )  # fmt: skip
                if not started:
                    return lease, seen
            case Stop():
                failpoint("lease.stop.before_engine")
                engine.stop(lease.id, notice=notice_of(lease))
                failpoint("lease.stop.after_engine")
                return lease, seen
            case None:
                return lease, seen


def notice_of(lease: Lease) -> Notice:
    """Return what a draining lease's workload is told."""
    assert lease.end_reason is not None
    assert lease.stops_at is not None
    return Notice(
        reason=lease.end_reason,
        message=_MESSAGES.get(lease.end_reason, "This lease is ending."),
        noticed_at=lease.since,
        stops_at=lease.stops_at,
    )


def _move(lease: Lease, move: Move, *, db: Database, now: datetime) -> Lease:
    moved = lease.move(move)
    if move.to is State.RUNNING:
        assert moved.running_at is not None
        until = moved.until  # of a window, which pays for it
        if moved.reservation_id is None:
            until = blocks.paid_until(moved, blocks=1, running_at=moved.running_at)
        moved = replace(moved, paid_until=until)
    with db.transaction() as tx:
        store.save(tx, moved, now=now)
    log.info(
        "lease.moved",
        extra={
            "lease": lease.id,
            "from": lease.state,
            "to": moved.state,
            "reason": moved.end_reason,
        },
    )
    return moved


def _start(
    lease: Lease,
    *,
    db: Database,
    engine: Engine,
    now: datetime,
    notice_url: str | None,
    tunnel_url: str | None,
) -> tuple[Lease, bool]:
    with db.transaction() as tx:
        spec = store.get_spec(tx, lease.id)
    workload = Workload(
        id=lease.id,
        gpu_model=lease.pool,
        gpus=lease.gpus,
        command=spec.command,
        environment=spec.environment,
        files=spec.files,
        sandboxed=spec.sandboxed,
        network=spec.network,
        memory_bytes=spec.memory_bytes,
        processes=spec.processes,
        notice_url=notice_url,
        image=spec.image,
        window=lease.reservation_id,
        tunnel_url=tunnel_url if spec.interactive else None,
    )
    # Should we die before we see it run, it must not run on for longer than it is paid.
    fence = now + timedelta(seconds=blocks.block_seconds(lease, 0)) + lease.notice
    try:
        failpoint("lease.start.before_engine")
        started = engine.start(workload, deadline=fence)
        failpoint("lease.start.after_engine")
        return lease, started
    except (Invalid, Refused) as error:
        move = Move(to=State.DRAINING, at=now, reason=EndReason.START_FAILED, detail=str(error))
        return _move(lease, move, db=db, now=now), True


def pay_ahead(lease: Lease, *, db: Database, now: datetime) -> Lease:
    """Hold the next minutes of a running lease until `now` and a little more is paid for.

    Unpaid is no error here: the lease then ends where its money does.
    """
    while _runs_out(lease, now):
        assert lease.running_at is not None
        try:
            with db.transaction() as tx:
                block = blocks.next_block(tx, lease)
                price = market.get_price(tx, lease.price_id)
                blocks.hold_block(tx, lease, block, rate=price.rate, now=now)
                failpoint("lease.pay_ahead.held")
                until = blocks.paid_until(lease, blocks=block + 1, running_at=lease.running_at)
                blocks.extend_paid(tx, lease, until)
        except Refused:
            log.info("lease.unpaid", extra={"lease": lease.id})
            return lease
        lease = replace(lease, paid_until=until)
    return lease


def _runs_out(lease: Lease, now: datetime) -> bool:
    return (
        lease.state is State.RUNNING
        and lease.paid_until is not None
        and lease.ends_at is not None
        and lease.paid_until < lease.ends_at
        and now >= lease.paid_until - blocks.AHEAD
        # Past its fence the engine has ended it, or its clock and ours do not agree: nothing
        # is sold of time that nobody can have had.
        and now < lease.paid_until + lease.notice
    )


def fence_of(lease: Lease) -> datetime | None:
    """Return when the engine itself must kill a running lease, whatever becomes of us."""
    if lease.state is not State.RUNNING or lease.paid_until is None:
        return None
    return lease.paid_until + lease.notice


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
    tx: Tx, leases: Sequence[Lease], nodes: Mapping[str, int], *, now: datetime
) -> dict[str, Losses]:
    """Return what is known of the losses in each pool; `nodes` has the GPUs of its largest node."""
    lately = store.reclaimed_lately(tx, since=now - reclaim.LATELY)
    wanted = {lease.price_id for lease in leases if lease.is_firm(now)}
    rates = {price_id: market.get_price(tx, price_id).rate for price_id in sorted(wanted)}
    return {
        pool: Losses(rates=rates, lately=lately.get(pool, {}), node_gpus=max(nodes.get(pool, 1), 1))
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
