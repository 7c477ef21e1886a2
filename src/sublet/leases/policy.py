"""Whose promises a new policy of a pool would not allow any more.

A policy holds for what is sold from then on. What was promised stands, so who changes the policy
is shown first how much of the pool stays promised, to whom, and until when.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sublet.core.db import Tx
from sublet.core.errors import Unconfirmed
from sublet.fleet import store as fleet
from sublet.fleet.pool import Policy, Pool
from sublet.leases import reservations, store
from sublet.leases.lease import Lease, State
from sublet.leases.reservation import Reservation

_SHOWN = 10  # of the promises, in the message; the answer's `hits` has them all


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """GPUs of a pool that somebody was promised."""

    kind: str  # 'lease', 'reservation' or 'contract'
    id: UUID
    tenant_id: UUID
    gpus: int
    since: datetime  # when it was sold: of two promises the older is kept first
    start: datetime
    end: datetime | None  # None: not known yet
    notice_seconds: int
    firm: bool  # breaking it costs a credit


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A promise that a new policy does not allow, and that stands all the same."""

    promise: Promise
    why: str


def hits(
    promises: Sequence[Promise], policy: Policy, *, gpus: int, now: datetime, node_gpus: int = 1
) -> list[Hit]:
    """Return the promises that would not be sold under `policy`, the oldest first.

    Args:
        promises: that stand in one pool.
        policy: as it would be.
        gpus: of the pool, healthy.
        now: the present instant.
        node_gpus: of its largest node.
    """
    allowed = gpus - policy.reserve
    if policy.lending_limit is not None:
        allowed = min(allowed, policy.lending_limit)
    if not policy.lendable:
        allowed = 0
    found = []
    for promise in sorted(promises, key=lambda one: (one.since, one.id)):
        why = []
        if promise.notice_seconds > policy.notice_seconds:
            why.append(f"was promised {promise.notice_seconds} s of notice")
        if policy.exclusive and promise.gpus % node_gpus:
            why.append(f"has {promise.gpus} GPUs, which are no whole nodes")
        if promise.firm:
            # Of those that do not overlap, each may have all that is allowed.
            before = [
                one
                for one in promises
                if one.firm
                and (one.since, one.id) < (promise.since, promise.id)
                and (one.end is None or one.end > promise.start)
                and (promise.end is None or promise.end > one.start)
            ]
            if sum(one.gpus for one in before) + promise.gpus > allowed:
                until = (
                    "its start is over"
                    if promise.end is None
                    else f"{promise.end:%Y-%m-%d %H:%M} UTC"
                )
                why.append(f"is promised {promise.gpus} GPUs until {until}")
            if policy.quiet is not None and policy.quiet.meet(
                max(promise.start, now), promise.end or max(promise.start, now)
            ):
                why.append(f"reaches into the quiet hours {policy.quiet}")
        if why:
            found.append(Hit(promise=promise, why=" and ".join(why)))
    return found


def of_lease(lease: Lease, now: datetime) -> Promise:
    return Promise(
        kind="lease",
        id=lease.id,
        tenant_id=lease.tenant_id,
        gpus=lease.gpus,
        since=lease.requested_at,
        start=lease.running_at or now,
        end=lease.firm_until,
        notice_seconds=int(lease.notice.total_seconds()),
        firm=lease.is_firm(now) and lease.state in _PROMISED,
    )


def of_window(found: Reservation) -> Promise:
    return Promise(
        kind="reservation" if found.contract_id is None else "contract",
        id=found.contract_id or found.id,
        tenant_id=found.tenant_id,
        gpus=found.gpus - found.lost_gpus,
        since=found.booked_at,
        start=found.starts_at,
        end=found.ends_at,
        notice_seconds=int(found.notice.total_seconds()),
        firm=True,
    )


_PROMISED = frozenset({State.ADMITTED, State.PROVISIONING, State.RUNNING})


def promises_of(tx: Tx, pool: str, *, now: datetime) -> list[Promise]:
    """Return every promise that stands in a pool."""
    sold = [
        of_lease(lease, now)
        for lease in store.list_live(tx)
        if lease.pool == pool and lease.state in _PROMISED and lease.reservation_id is None
    ]
    return sold + [of_window(found) for found in reservations.list_open(tx, pool)]


def change(tx: Tx, name: str, policy: Policy, *, confirmed: bool, now: datetime) -> Pool:
    """Set a pool's policy; it holds for what is sold from now on.

    Raises:
        NotFound: there is no such pool.
        Invalid: a value out of range.
        Unconfirmed: promises stand that the policy would not allow. Nothing was changed.
    """
    policy.check()
    pool = fleet.lock_pool(tx, name)
    promises = promises_of(tx, name, now=now)
    found, before = (
        hits(promises, one, gpus=pool.gpus, now=now, node_gpus=pool.node_gpus)
        for one in (policy, pool.policy)
    )
    already = {(hit.promise.id, hit.why) for hit in before}
    # What the present policy does not allow either is no news.
    found = [hit for hit in found if (hit.promise.id, hit.why) not in already]
    if found and not confirmed:
        listed = "; ".join(
            f"{hit.promise.kind} {hit.promise.id} {hit.why}" for hit in found[:_SHOWN]
        )
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise Unconfirmed(
            f"this policy would not have allowed what was promised of {name}: {listed}{more}."
            " Nothing was changed. These promises stand until they end, also under the new"
            " policy: confirm it (--yes, or `confirm`)",
            hits=[document(hit) for hit in found],
        )
    return fleet.set_policy(tx, name, policy, now=now)


def document(hit: Hit) -> dict[str, object]:
    return {
        "kind": hit.promise.kind,
        "id": hit.promise.id,
        "tenant_id": hit.promise.tenant_id,
        "gpus": hit.promise.gpus,
        "start": hit.promise.start,
        "end": hit.promise.end,
        "notice_seconds": hit.promise.notice_seconds,
        "why": hit.why,
    }
