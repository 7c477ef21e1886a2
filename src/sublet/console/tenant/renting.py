"""Leasing GPUs in three steps: what is on offer, what it costs and promises, and what it shall run."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.responses import Response

from sublet.console.visit import Visit
from sublet.core.errors import Invalid, NotFound
from sublet.core.ids import new_id
from sublet.market.price import Tier

SOLD_HERE: Final = (Tier.INTERRUPTIBLE, Tier.ON_DEMAND, Tier.RESERVED)  # contracts are agreed upon
_QUOTES: Final = 1000  # of which one may be opened again


async def show(visit: Visit) -> Response:
    """Show what can be leased now, and for how much."""
    offers = (await visit.api.get("/v1/offers"))["items"]
    pools: dict[str, list[dict[str, Any]]] = {}
    for one in offers:
        if one["tier"] in SOLD_HERE:
            pools.setdefault(one["pool"], []).append(one)
    for found in pools.values():
        found.sort(key=lambda one: SOLD_HERE.index(one["tier"]))
    return visit.page(
        "tenant/renting.html",
        title="Lease GPUs",
        pools=pools,
        wallet=await visit.api.get("/v1/wallet"),
        soon=_whole_hour(visit.site.ground.clock.now()),
    )


def _whole_hour(now: datetime) -> str:
    """Return the next whole hour as a form has it."""
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return f"{hour:%Y-%m-%dT%H:%M}"


async def quote(visit: Visit) -> Response:
    """Have a price held for ten minutes, and show it."""
    tier = visit.must("tier")
    asked: dict[str, Any] = {
        "pool": visit.must("pool"),
        "tier": tier,
        "gpus": int(_number(visit, "gpus")),
    }
    length = timedelta(hours=_number(visit, "hours"))
    if visit.said("notice") is not None:
        asked["notice_seconds"] = int(_number(visit, "notice"))
    if tier == Tier.RESERVED:
        try:
            start = datetime.fromisoformat(visit.must("starts_at")).replace(tzinfo=UTC)
        except ValueError:
            raise Invalid("starts at: must be a day and a time") from None
        asked |= {"starts_at": start, "ends_at": start + length}
    else:
        asked["max_seconds"] = int(length.total_seconds())
    made = await visit.api.post("/v1/quotes", asked)
    visit.note(subject=made["id"], after={name: made[name] for name in ("gpus", "most_usd")})
    return visit.go_to(f"/rent/quotes/{made['id']}")


def _number(visit: Visit, name: str) -> float:
    """Raises Invalid: the field holds none that is above nothing and below a million."""
    try:
        number = float(visit.must(name))
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise Invalid(f"{name}: must be a number")
    return number


async def show_quote(visit: Visit) -> Response:
    """Show the price, the promise, and what it may run."""
    made = await _find(visit)
    offers = (await visit.api.get("/v1/offers"))["items"]
    offer = next(
        (one for one in offers if (one["pool"], one["tier"]) == (made["pool"], made["tier"])), None
    )
    return visit.page(
        "tenant/quote.html", title="A quote", quote=made, offer=offer,
        wallet=await visit.api.get("/v1/wallet"), new_id=new_id(),
    )  # fmt: skip


async def _find(visit: Visit) -> dict[str, Any]:
    """Raises NotFound: this tenant was quoted nothing of the kind."""
    wanted = visit.part("quote_id")
    for one in (await visit.api.get("/v1/quotes", limit=_QUOTES))["items"]:
        if one["id"] == wanted:
            return dict(one)
    raise NotFound(f"there is no quote {wanted[:40]}")


async def accept(visit: Visit) -> Response:
    """Buy what was quoted. The form has the id of what it makes: sent twice, it buys once."""
    made = await _find(visit)
    wanted: dict[str, Any] = {
        "id": visit.must("id"),
        "quote": made["id"],
        "interactive": visit.said("interactive") is not None,
        "network": visit.said("network") is not None,
    }
    if (script := visit.said("command")) is not None:
        wanted["command"] = ["sh", "-c", script]
    if made["tier"] == Tier.RESERVED:
        sold = await visit.api.post("/v1/reservations", wanted)
        visit.note(subject=sold["id"], after={"reservation": sold["id"], "gpus": sold["gpus"]})
        return visit.go_to("/your-leases", "The window is yours.")
    if "command" not in wanted:
        raise Invalid("command: must be filled in; the lease ends when it does")
    wanted["resumable"] = visit.said("resumable") is not None
    if (webhook := visit.said("webhook")) is not None:
        wanted["webhook"] = webhook
    lease = await visit.api.post("/v1/leases", wanted)
    visit.note(subject=lease["id"], after={"lease": lease["id"], "gpus": lease["gpus"]})
    return visit.go_to(f"/your-leases/{lease['id']}", "Its GPUs are yours.")
