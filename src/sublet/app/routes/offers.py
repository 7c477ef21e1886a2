"""What can be leased now, and at which price."""

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter

from sublet.app.documents import usd
from sublet.app.http import AnyCaller, Ours
from sublet.core.db import Tx
from sublet.fleet import store as fleet
from sublet.leases import booking, service, terms
from sublet.market import bids, scales
from sublet.market import store as market
from sublet.market.notice import Scale, Step
from sublet.market.price import Tier, lease_sku

router = APIRouter(prefix="/v1")

_HOUR: Final = timedelta(hours=1)


@router.get("/offers", tags=["leases"])
def list_offers(ours: Ours, found: AnyCaller) -> dict[str, Any]:
    """List what can be leased now, and at which price: yours, and that of the list."""
    jobs = ours.engine.internal_jobs()
    now = ours.clock.now()
    items = []
    with ours.db.transaction() as tx:
        for pool in fleet.list_pools(tx):
            scale = scales.find_scale(tx, pool.name, at=now)
            for tier in Tier:
                own = UUID(int=0) if found.tenant is None else found.tenant.id
                sku = lease_sku(pool.name, tier)
                price = market.find_terms(tx, sku, tenant_id=own, at=now)
                if price is None:
                    continue
                longest = terms.longest_notice(pool)
                notices = [] if tier is Tier.CONTRACT else _by_notice(price, scale, longest)
                firm = terms.firm_for(pool, tier, service.LONGEST)
                room = service.room_now(tx, pool, jobs, firm=firm, now=now)
                available = room.gpus
                if tier is Tier.RESERVED:  # for the next hour; a quote says what of another
                    available = booking.room_of(tx, pool, now, now + _HOUR, now=now).gpus
                items.append(
                    {
                        "pool": pool.name,
                        "tier": tier,
                        **(notices[-1] if notices else _hourly(price)),
                        "by_notice": notices,
                        "gpus_available": available,
                        "notice_seconds": pool.policy.notice_seconds,
                        "exclusive": pool.policy.exclusive,
                        "multiple_of": pool.node_gpus if pool.policy.exclusive else 1,
                        "firm_seconds": int(firm.total_seconds()),
                        **_least(tx, pool.name, firm=firm, reserved=tier is Tier.RESERVED, now=now),
                    }
                )
    return {"items": items}


def _by_notice(
    price: market.Terms, scale: Scale | None, longest: timedelta
) -> list[dict[str, Any]]:
    """Return what each notice costs, from the shortest up to the longest that the pool sells."""
    shortest = min(terms.SHORTEST_NOTICE, longest)
    steps = () if scale is None else scale.steps
    notices = sorted({shortest, *(one.notice for one in steps if shortest < one.notice <= longest)})
    items = []
    for notice in notices:
        step = None if scale is None else scale.step(notice)
        items.append({"notice_seconds": notice // timedelta(seconds=1), **_hourly(price, step)})
    return items


def _hourly(price: market.Terms, step: Step | None = None) -> dict[str, Any]:
    own, listed = price.contracted.rate, price.listed.rate
    if step is not None:
        own, listed = step.of(own), step.of(listed)
    return {
        "usd_per_gpu_hour": usd(own.charge(3600)),
        "list_usd_per_gpu_hour": usd(listed.charge(3600)),
    }


def _least(tx: Tx, pool: str, *, firm: timedelta, reserved: bool, now: datetime) -> dict[str, Any]:
    """Return who decides about the price of the next hour: bid prices, or the book alone."""
    found = bids.find(tx, pool, now=now)
    if found is None:
        return {"priced_by": "price_book", "least_usd_per_gpu_hour": None}
    least = found.least(start=now, length=_HOUR, firm=reserved or bool(firm))
    return {"priced_by": "bid_prices", "least_usd_per_gpu_hour": usd(least.charge(3600))}
