"""Finding bid prices of each pool: from what was sold lately, what runs, and the newest plan.

Expected demand is what was asked for and sold in the last week; what was turned away is not on
record, so it is not expected. Slow to load and to run: it belongs beside the planner.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sublet.core.db import Database, Tx
from sublet.core.errors import Unavailable
from sublet.fleet import store as fleet
from sublet.fleet.pool import Pool
from sublet.leases import reservations, store
from sublet.leases.lease import Lease
from sublet.leases.reservation import of_reservation
from sublet.leases.store import QUERIES
from sublet.market import bids
from sublet.market.bid import Expected, bid_prices, expect
from sublet.planner import store as plans
from sublet.planner.firm import most_promised

log = logging.getLogger(__name__)

_SEEN: Final = timedelta(days=7)
_DAY: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)
_SLOTS: Final = 24
_FEWEST_HOURS: Final = 100.0  # of leases, before reclaims say much

Floats = NDArray[np.float64]


def renew(db: Database, *, now: datetime) -> None:
    """Find and keep the bid prices of every pool.

    Raises:
        Unavailable: the database did not answer.
    """
    found: dict[str, dict[str, Any] | None] = {}
    live: dict[str, list[Lease]] = defaultdict(list)
    with db.transaction() as tx:
        for lease in store.list_live(tx):
            if lease.reservation_id is None:
                live[lease.pool].append(lease)
        for pool in fleet.list_pools(tx):
            try:
                found[pool.name] = _of_pool(tx, pool, live[pool.name], now=now)
            except Unavailable as error:  # the solver gave up: the price book decides
                found[pool.name] = None
                log.warning("bids.not_found", extra={"pool": pool.name, "detail": str(error)})
    with db.transaction() as tx:
        bids.put(tx, found, now=now)
    log.info("bids.renewed", extra={"pools": sum(one is not None for one in found.values())})


def _of_pool(tx: Tx, pool: Pool, live: Sequence[Lease], *, now: datetime) -> dict[str, Any] | None:
    plan = plans.get_plan(tx, pool.name)
    if plan is None or not plan.plan["band"]:
        return None
    idle, promisable = _capacity(tx, pool, plan.plan, live, now=now)
    made = bid_prices(
        _expected(tx, pool.name, now=now), lendable=idle, promisable=promisable, slot_hours=1.0
    )
    if made is None:
        return None
    return {
        "slot_hours": made.slot_hours,
        "any": [round(float(price), 3) for price in made.any],
        "firm": [round(float(price), 3) for price in made.firm],
        "leaving": made.leaving,
    }


def _expected(tx: Tx, pool: str, *, now: datetime) -> Expected:
    given = {"pool": pool, "since": now - _SEEN, "now": now}
    rows = tx.execute(QUERIES["list_asked"], given).fetchall()
    first = min((row["asked_at"] for row in rows), default=now)
    ran = sum(float(row["ran_hours"]) for row in rows if not row["firm"])
    reclaimed = sum(row["reclaimed"] for row in rows if not row["firm"])
    return expect(
        offers=np.array([float(row["nanos_hour"]) for row in rows]),
        hours=np.array([row["seconds"] / 3600 for row in rows]),
        gpus=np.array([float(row["gpus"]) for row in rows]),
        firm=np.array([row["firm"] for row in rows], dtype=np.bool_),
        over_hours=max(now - first, _DAY) / _HOUR,  # a busy hour is no busy day
        leaving=reclaimed / max(ran, _FEWEST_HOURS),
    )


def _capacity(
    tx: Tx, pool: Pool, plan: Any, live: Sequence[Lease], *, now: datetime
) -> tuple[Floats, Floats]:
    """Return the GPUs that are likely to be free of leases, and may be promised, by slot."""
    ahead = np.array([band["ahead_seconds"] / 3600 for band in plan["band"]])
    middle = np.array([float(band["demand"]["0.5"]) for band in plan["band"]])
    slots = np.arange(_SLOTS) + 0.5
    idle = pool.gpus - pool.policy.reserve - np.interp(slots, ahead, middle)
    if pool.policy.lending_limit is not None:
        idle = np.minimum(idle, pool.policy.lending_limit)
    if not pool.policy.lendable:
        idle[:] = 0
    firm = np.array([_firm(plan["firm"], slot) for slot in range(_SLOTS)])
    promises = store.list_promised(tx, pool.name, now=now)
    promises += [of_reservation(sold) for sold in reservations.list_open(tx, pool.name)]
    taken, promised = np.zeros(_SLOTS), np.zeros(_SLOTS)
    for slot in range(_SLOTS):
        start = now + slot * _HOUR
        at = start + _HOUR / 2
        taken[slot] = sum(
            lease.gpus for lease in live if (lease.ends_at or now + lease.max_duration) > at
        )
        promised[slot] = most_promised(promises, start, start + _HOUR)
    windows = np.array(
        [
            sum(one.gpus for one in promises if one.start <= now + slot * _HOUR < one.end)
            for slot in range(_SLOTS)
        ],
        dtype=np.float64,
    )
    held = np.maximum(taken, windows)
    return np.maximum(idle - held, 0.0), np.maximum(np.minimum(idle, firm) - promised, 0.0)


def _firm(firm: dict[str, int], slot: int) -> float:
    """Return what may be promised for the shortest window that reaches a slot."""
    lengths = sorted(int(window.removesuffix("h")) for window in firm)
    hours = next((length for length in lengths if length > slot), lengths[-1])
    return float(firm[f"{hours}h"])
