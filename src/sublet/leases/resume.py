"""Bringing paused leases back: those that were reclaimed, and are resumable.

A lease that goes on is a new lease with what was left of the old one's time, under an id that
follows from the old one's; so it comes back once, however often anybody tries.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.ids import derived_id
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases import admission, service, store, terms, webhooks
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.service import Request
from sublet.planner.surplus import sellable_gpus
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantId

log = logging.getLogger(__name__)

_LEAST = timedelta(seconds=1)
_AT_ONCE: Final = 50


def time_left(lease: Lease) -> timedelta:
    """Return what is left of the time that a lease was sold for."""
    if lease.running_at is None or lease.stopped_at is None:
        return lease.max_duration
    return lease.max_duration - (lease.stopped_at - lease.running_at)


def _notice(tx: Tx, lease: Lease) -> timedelta:
    """Return the notice that it had, as far as the pool still sells it."""
    longest = terms.longest_notice(fleet.lock_pool(tx, lease.pool))
    return max(min(lease.notice, longest), min(terms.SHORTEST_NOTICE, longest))


def resume(db: Database, *, jobs: Sequence[InternalJob], now: datetime) -> list[Lease]:
    """Admit again what waits to come back and has room, in the order of first request.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        paused = store.list_paused(tx)
        pools = {pool.name: pool for pool in fleet.list_pools(tx)} if paused else {}
        room = {
            name: sellable_gpus(service.pressure_of(tx, pools[name], jobs, now=now))
            for name in {lease.pool for lease in paused}
        }
    used: dict[str, int] = defaultdict(int)
    back: list[Lease] = []
    for lease in paused:
        if len(back) == _AT_ONCE:  # they are started first; the next pass goes on
            break
        # Strictly in order within a pool: a small one that overtakes could keep a big one out.
        if used[lease.pool] + lease.gpus > room[lease.pool]:
            room[lease.pool] = 0
            continue
        if (found := _resume_one(lease, db=db, jobs=jobs, now=now)) is not None:
            used[lease.pool] += lease.gpus
            back.append(found)
    return back


def _resume_one(
    lease: Lease, *, db: Database, jobs: Sequence[InternalJob], now: datetime
) -> Lease | None:
    try:
        with db.transaction() as tx:
            if not store.end_pause(tx, lease.id):
                return None
            left = time_left(lease)
            if left < _LEAST:
                return None
            spec = store.get_spec(tx, lease.id)
            environment = {**spec.environment, "SUBLET_RESUMES": str(lease.id)}
            request = Request(
                id=LeaseId(derived_id(lease.id, "resume")),
                pool=lease.pool,
                gpus=lease.gpus,
                tier=lease.tier,
                max_duration=left,
                spec=replace(spec, environment=environment),
                notice=_notice(tx, lease),
                resumable=True,
                resumes=lease.id,
            )
            tenant = tenants.get_tenant(tx, TenantId(lease.tenant_id))
            found = admission.admit(tx, tenant, request, jobs=jobs, now=now)
            webhooks.carry_over(tx, lease.id, found.id)
    except (Refused, Invalid, NotFound) as error:  # it stays paused, and is tried again
        log.info("lease.not_resumed", extra={"lease": lease.id, "detail": str(error)})
        return None
    log.info("lease.resumed", extra={"lease": found.id, "resumes": lease.id})
    return found
