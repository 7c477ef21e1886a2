"""Quoting a lease: what it would cost, held for a while."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases import booking, service, terms
from sublet.market import quotes
from sublet.market.price import Tier
from sublet.market.quote import LONGEST_LIFETIME, Quote
from sublet.tenants.tenant import Tenant, TenantKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a tenant wants to know the price of."""

    pool: str
    gpus: int
    tier: Tier
    max_duration: timedelta
    starts_at: datetime | None = None  # of a reserved window
    notice: timedelta | None = None  # None: the longest that the pool sells


def quote(
    tx: Tx,
    tenant: Tenant,
    ask: Ask,
    *,
    jobs: Sequence[InternalJob],
    lifetime: timedelta,
    now: datetime,
) -> Quote:
    """Say what it costs, and hold that price for `lifetime`. No GPUs are held.

    Raises:
        NotFound: there is no such pool.
        Invalid: it can never be sold as written.
        Refused: it could not be sold now, so it is not quoted.
    """
    if not timedelta(seconds=1) <= lifetime <= LONGEST_LIFETIME:
        raise Invalid(
            f"lifetime_seconds must lie in 1…{int(LONGEST_LIFETIME.total_seconds())},"
            f" not {int(lifetime.total_seconds())}"
        )
    if (ask.tier is Tier.RESERVED) != (ask.starts_at is not None):
        raise Invalid(
            f"starts_at: a window is {Tier.RESERVED}, and what is {Tier.RESERVED} has one"
        )
    pool = fleet.lock_pool(tx, ask.pool)
    notice = terms.notice_of(pool, ask.notice)
    terms.check_nodes(pool, ask.gpus)
    price = service.prices_of(tx, pool, ask.tier, notice=notice, tenant=tenant, now=now)
    firm = ask.max_duration
    if ask.starts_at is None:
        service.check_size(ask.gpus, ask.max_duration)
        firm = terms.firm_for(pool, ask.tier, ask.max_duration)
        room = service.room_now(tx, pool, jobs, firm=firm, now=now)
        terms.check_room(pool, gpus=ask.gpus, firm=firm, room=room, now=now)
    else:
        end = ask.starts_at + ask.max_duration
        booking.check_room(tx, pool, ask.starts_at, end, gpus=ask.gpus, now=now)
    if tenant.kind is not TenantKind.HOUSE:
        service.check_price(
            tx, pool, price.contracted.rate, start=ask.starts_at or now, length=ask.max_duration,
            firm=firm, now=now,
        )  # fmt: skip
    made = Quote(
        id=new_id(),
        tenant_id=tenant.id,
        pool=pool.name,
        gpus=ask.gpus,
        tier=ask.tier,
        notice=notice,
        max_duration=ask.max_duration,
        starts_at=ask.starts_at,
        price=price.contracted,
        list_price=price.listed,
        made_at=now,
        expires_at=now + lifetime,
    )
    quotes.insert(tx, made)
    return made
