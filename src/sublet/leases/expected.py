"""Declaring capacity that is to come, and whose contracts stand on it.

Contracts are signed against it. So who postpones it, makes it less or takes it back is shown first
which contracts it would leave without GPUs.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import Invalid, Unconfirmed
from sublet.fleet import comings
from sublet.fleet import store as fleet
from sublet.fleet.coming import Capacity, Coming, counted
from sublet.leases import policy
from sublet.leases.policy import Hit, Promise

log = logging.getLogger(__name__)


def uncovered(promises: Sequence[Promise], capacity: Capacity, *, now: datetime) -> list[Hit]:
    """Return the contracts for whose steps there will not be enough GPUs, the oldest first.

    Args:
        promises: that stand in one pool.
        capacity: of it.
        now: the present instant: what runs already is not looked at.
    """
    firm = [one for one in promises if one.firm and one.end is not None]
    found = []
    for promise in sorted(firm, key=lambda one: (one.since, one.id, one.start)):
        if promise.kind != "contract" or promise.start <= now or promise.end is None:
            continue
        for start, end in capacity.pieces(promise.start, promise.end):
            before = sum(
                one.gpus
                for one in firm
                if (one.since, one.id) < (promise.since, promise.id)
                and one.start < end
                and one.end is not None
                and one.end > start
            )
            there = capacity.at(start)
            if before + promise.gpus > there:
                why = (
                    f"is promised {promise.gpus} GPUs from {promise.start:%Y-%m-%d %H:%M} UTC on,"
                    f" beside {before} of others, and {there} will be there"
                )
                found.append(Hit(promise=promise, why=why))
                break
    return found


def declare(tx: Tx, wanted: Coming, *, now: datetime) -> Coming:
    """Record that GPUs of a pool are expected. Doing it again changes nothing.

    Raises:
        NotFound: there is no such pool.
        Invalid: it is in the past, is nothing, or its id stands for something else.
    """
    fleet.lock_pool(tx, wanted.pool)
    if (before := comings.find(tx, wanted.id)) is not None:
        if before != wanted:
            raise Invalid(f"id {wanted.id} was already used for something else")
        return before
    if wanted.gpus < 1:
        raise Invalid(f"gpus must be at least 1, not {wanted.gpus}")
    comings.put(tx, wanted, now=now)
    log.info("capacity.declared", extra={"pool": wanted.pool, "gpus": wanted.gpus})
    return wanted


def change(
    tx: Tx,
    id_: UUID,
    *,
    gpus: int | None,
    ready_at: datetime | None,
    confirmed: bool,
    now: datetime,
) -> Coming:
    """Record what is known of it now: other GPUs, another date, or, with no GPUs, that it is over.

    Raises:
        NotFound: nothing of this id was declared.
        Invalid: the date is over, or a value is out of range.
        Unconfirmed: contracts were signed against it that it would leave without GPUs. Nothing was
            changed.
    """
    pool = fleet.lock_pool(tx, comings.get(tx, id_).pool)
    before = comings.get(tx, id_)  # as it is under the lock
    wanted = replace(
        before,
        gpus=before.gpus if gpus is None else gpus,
        ready_at=before.ready_at if ready_at is None else ready_at,
    )
    wanted.check(now=now)
    if wanted == before:
        return before
    others = [one for one in comings.list_all(tx) if one.pool == pool.name and one.id != id_]
    promises = policy.promises_of(tx, pool.name, now=now)
    known = [
        uncovered(promises, counted(pool.gpus, [*others, one], now=now), now=now)
        for one in (before, wanted)
    ]
    already = {(hit.promise.id, hit.promise.start) for hit in known[0]}
    found = [hit for hit in known[1] if (hit.promise.id, hit.promise.start) not in already]
    if found and not confirmed:
        listed = "; ".join(f"contract {hit.promise.id} {hit.why}" for hit in found[:10])
        more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
        raise Unconfirmed(
            f"contracts were signed against this capacity: {listed}{more}. Nothing was changed."
            " They stand, and what is late of them costs less: confirm it (--yes, or `confirm`)",
            hits=[policy.document(hit) for hit in found],
        )
    comings.put(tx, wanted, now=now)
    log.info("capacity.changed", extra={"pool": pool.name, "coming": id_, "gpus": wanted.gpus})
    return wanted
