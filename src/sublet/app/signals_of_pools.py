"""How each pool's idle capacity was taken: from samples of demand, and from what was charged."""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

from sublet.app.documents import usd
from sublet.core.db import Tx
from sublet.core.money import Money
from sublet.fleet import store as fleet
from sublet.fleet.demand import SLOT
from sublet.market.absorption import ADVICE, Absorption, Sample, absorb
from sublet.market.service import find_floor
from sublet.metering import store as metering


def signals_of_pools(tx: Tx, *, days: int, now: datetime) -> list[dict[str, Any]]:
    """Return a document for each pool of which anything was seen in the last days."""
    since = now - timedelta(days=days)
    slot = int(SLOT.total_seconds())
    sold: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for leased in metering.list_leased(tx, since=since, slot_seconds=slot):
        sold[leased["pool"]][leased["slot"]] = leased
    out = []
    for pool, seen in sorted(fleet.list_samples(tx, since=since).items()):
        samples = []
        for at, gpus, running, pending in zip(
            seen.slots, seen.gpus, seen.running, seen.pending, strict=True
        ):
            row = sold[pool].get(at)
            samples.append(
                Sample(
                    at=at,
                    offered=float(max(gpus - running - pending, 0)),
                    leased=0.0 if row is None else row["gpu_seconds"] / slot,
                    paid_nanos=0 if row is None else int(row["paid_nanos"]),
                    paid_gpu_seconds=0 if row is None else row["paid_seconds"],
                )
            )
        floor = find_floor(tx, pool)
        floor_nanos = None if floor is None else floor.rate.nanos
        out.append(_document(pool, absorb(samples, slot_seconds=slot, floor_nanos=floor_nanos)))
    return out


def _document(pool: str, found: Absorption) -> dict[str, Any]:
    price = found.nanos_per_gpu_hour
    return {
        "pool": pool,
        "signal": found.signal,
        "advice": ADVICE[found.signal],
        "hours": round(found.hours, 2),
        "offered_gpu_hours": round(found.offered_gpu_hours, 2),
        "sold_share": round(found.sold_share, 4),
        "hours_to_half": None if found.hours_to_half is None else round(found.hours_to_half, 2),
        "taken_gpus": round(found.taken_gpus, 1),
        "withdrawn_gpus": round(found.withdrawn_gpus, 1),
        "waiting_gpus": round(found.waiting_gpus, 1),
        "usd_gpu_hour": None if price is None else usd(Money(price)),
        "over_floor": None if found.over_floor is None else round(found.over_floor, 3),
        "price_change": None if found.price_change is None else round(found.price_change, 4),
    }
