"""Bringing paused leases back: those that were reclaimed, and are resumable.

A lease that goes on is a new lease with what was left of the old one's time, under an id that
follows from the old one's; so it comes back once, however often anybody tries. As many as have
room come back in one transaction.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from sublet.core.db import Database, Tx
from sublet.core.errors import Conflict, Invalid, NotFound, Refused, SubletError
from sublet.core.ids import derived_id
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.fleet.pool import Pool
from sublet.leases import admission, store, terms, webhooks
from sublet.leases.admission import Asked
from sublet.leases.known import know
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.service import Request
from sublet.planner.surplus import sellable_gpus
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantId

log = logging.getLogger(__name__)

_LEAST = timedelta(seconds=1)
_AT_ONCE: Final = 50  # they are started first; the next pass goes on


@dataclass(slots=True, kw_only=True)
class _Batch:
    """What one transaction did."""

    back: list[Lease] = field(default_factory=list)
    stay: set[LeaseId] = field(default_factory=set)  # which had room, and may not come back now


def time_left(lease: Lease) -> timedelta:
    """Return what is left of the time that a lease was sold for."""
    if lease.running_at is None or lease.stopped_at is None:
        return lease.max_duration
    return lease.max_duration - (lease.stopped_at - lease.running_at)


def next_back(
    paused: Sequence[Lease], room: Mapping[str, int], *, most: int, stay: Collection[LeaseId] = ()
) -> list[Lease]:
    """Return which come back next: strictly in order within a pool.

    A small one that overtakes could keep a big one out for ever.

    Args:
        paused: in order of their requests.
        room: GPUs that can be sold, by pool.
        most: so many at most.
        stay: which may not come back for reasons of their own; they keep nobody out.
    """
    left = dict(room)
    chosen: list[Lease] = []
    for lease in paused:
        if len(chosen) == most:
            break
        if lease.id in stay:
            continue
        gpus = lease.gpus if time_left(lease) >= _LEAST else 0
        if gpus > left.get(lease.pool, 0):
            left[lease.pool] = 0
            continue
        left[lease.pool] = left.get(lease.pool, 0) - gpus
        chosen.append(lease)
    return chosen


def resume(db: Database, *, jobs: Sequence[InternalJob], now: datetime) -> list[Lease]:
    """Admit again what waits to come back and has room, in the order of first request.

    All of them in one transaction; and in another whoever has the room of one that stays.

    Raises:
        Unavailable: the database did not answer.
    """
    back: list[Lease] = []
    stay: set[LeaseId] = set()
    with db.transaction() as tx:
        paused = store.list_paused(tx)
        if not paused or not _next(tx, paused, jobs, stay, most=_AT_ONCE, now=now):
            return []
    while len(back) < _AT_ONCE:
        try:
            with db.transaction("leases.resume") as tx:
                pools = fleet.lock_pools(tx, {lease.pool for lease in paused})
                most = _AT_ONCE - len(back)
                done = _resume_some(tx, pools, jobs, stay, most=most, now=now)
        except Conflict as error:  # somebody else was quicker: the next pass sees it
            log.info("lease.not_resumed", extra={"detail": str(error)})
            break
        for lease in done.back:
            log.info("lease.resumed", extra={"lease": lease.id, "resumes": lease.resumes})
        back += done.back
        stay |= done.stay
        if not done.stay:
            break
    return back


def _next(
    tx: Tx,
    paused: Sequence[Lease],
    jobs: Sequence[InternalJob],
    stay: Collection[LeaseId],
    *,
    most: int,
    now: datetime,
    pools: Mapping[str, Pool] | None = None,
) -> list[Lease]:
    wanted = {lease.pool for lease in paused}
    if pools is None:
        pools = {pool.name: pool for pool in fleet.list_pools(tx) if pool.name in wanted}
    known = know(tx, list(pools.values()), jobs, firm=(), now=now)
    room = {name: sellable_gpus(one.pressure) for name, one in known.items()}
    return next_back(paused, room, most=most, stay=stay)


def _resume_some(
    tx: Tx,
    pools: Mapping[str, Pool],
    jobs: Sequence[InternalJob],
    stay: Collection[LeaseId],
    *,
    most: int,
    now: datetime,
) -> _Batch:
    """Choose under the locks of the pools, so that nobody takes the room meanwhile."""
    paused = [lease for lease in store.list_paused(tx) if lease.pool in pools]
    chosen = _next(tx, paused, jobs, stay, most=most, now=now, pools=pools)
    # One that its tenant gave up at this moment is not among them.
    waits = store.lock_paused(tx, [lease.id for lease in chosen])
    chosen = [lease for lease in chosen if lease.id in waits]
    over = [lease.id for lease in chosen if time_left(lease) < _LEAST]
    going = [lease for lease in chosen if lease.id not in over]
    asked = _asked(tx, going, pools)
    outcomes = admission.admit_many(tx, asked, jobs=jobs, now=now) if asked else []
    done = _Batch()
    for lease, outcome in zip(going, outcomes, strict=True):
        if isinstance(outcome, Lease):
            done.back.append(outcome)
        else:
            done.stay.add(lease.id)
            _explain(lease, outcome)
    gone = [lease.id for lease in going if lease.id not in done.stay]
    store.end_pauses(tx, [*over, *gone])
    webhooks.carry_all_over(
        tx, [(before, after.id) for before, after in zip(gone, done.back, strict=True)]
    )
    return done


def _asked(tx: Tx, going: Sequence[Lease], pools: Mapping[str, Pool]) -> list[Asked]:
    specs = store.get_specs(tx, [lease.id for lease in going])
    owners = {
        id_: tenants.get_tenant(tx, TenantId(id_)) for id_ in {one.tenant_id for one in going}
    }
    return [
        Asked(
            tenant=owners[lease.tenant_id],
            request=Request(
                id=LeaseId(derived_id(lease.id, "resume")),
                pool=lease.pool,
                gpus=lease.gpus,
                tier=lease.tier,
                max_duration=time_left(lease),
                spec=replace(
                    specs[lease.id],
                    environment={**specs[lease.id].environment, "SUBLET_RESUMES": str(lease.id)},
                ),
                notice=_notice(pools[lease.pool], lease),
                resumable=True,
                resumes=lease.id,
            ),
        )
        for lease in going
    ]


def _notice(pool: Pool, lease: Lease) -> timedelta:
    """Return the notice that it had, as far as the pool still sells it."""
    longest = terms.longest_notice(pool)
    return max(min(lease.notice, longest), min(terms.SHORTEST_NOTICE, longest))


def _explain(lease: Lease, error: SubletError) -> None:
    """Say why it stays paused; it is tried again.

    Raises:
        SubletError: that is nothing which a lease may meet.
    """
    if not isinstance(error, Refused | Invalid | NotFound):
        raise error
    log.info("lease.not_resumed", extra={"lease": lease.id, "detail": str(error)})
