"""Bid prices as they are asked when something is sold: the newest of each pool, and no solver.

`bid` finds them, beside the planner. Where too little demand was seen, or nobody has looked for a
while, there are none, and the price book decides alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, expm1
from typing import Any, Final

from psycopg.types.json import Json

from sublet.core.db import Tx
from sublet.core.money import Rate
from sublet.market.store import QUERIES

STALE: Final = timedelta(minutes=15)
_HOUR: Final = timedelta(hours=1)
_NEARLY: Final = 1 - 1e-6  # what a solver finds is not exact: its own price must be enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Bids:
    """Nanos of a GPU-hour, for slots of one length from when they were made on."""

    made_at: datetime
    slot_hours: float
    any: Sequence[float]  # of whatever is lendable
    firm: Sequence[float]  # of what may be promised, on top
    leaving: float  # reclaims of an interruptible lease, per hour that it runs

    def least(self, *, start: datetime, length: timedelta, firm: bool) -> Rate:
        """Return the least price at which a window pays for what it displaces.

        That is the mean of bid prices over the time that it is expected to last, the last of them
        going on for ever. A request that pays it pays the sum of bid prices over its window.
        """
        begin = max((start - self.made_at) / _HOUR, 0.0)
        end = begin + length / _HOUR
        rate = 0.0 if firm else self.leaving
        paid = lasted = 0.0
        for slot, price in enumerate(self.any):
            last = slot == len(self.any) - 1
            low = max(slot * self.slot_hours, begin)
            high = end if last else min((slot + 1) * self.slot_hours, end)
            if high > low:
                lasts = _lasts(high - begin, rate) - _lasts(low - begin, rate)
                paid += (price + self.firm[slot] if firm else price) * lasts
                lasted += lasts
        return Rate(nanos=ceil(paid / lasted * _NEARLY) if lasted else 0, per=3600)


def _lasts(hours: float, rate: float) -> float:
    """Return for how many of so many hours a lease runs on average that is reclaimed at a rate."""
    return hours if rate <= 0 else -expm1(-rate * hours) / rate


def find(tx: Tx, pool: str, *, now: datetime) -> Bids | None:
    """Return what is asked of a pool now; None: the price book decides."""
    return find_all(tx, [pool], now=now).get(pool)


def find_all(tx: Tx, pools: Collection[str], *, now: datetime) -> dict[str, Bids]:
    """Return what is asked of pools now, of those where the price book does not decide."""
    rows = tx.execute(QUERIES["get_bids"], {"pools": list(pools), "since": now - STALE})
    return {row["pool"]: Bids(made_at=row["made_at"], **row["bids"]) for row in rows}


def put(tx: Tx, bids: Mapping[str, Mapping[str, Any] | None], *, now: datetime) -> None:
    """Keep what was found of each pool: `slot_hours`, `any`, `firm` and `leaving`, or None."""
    for pool, found in sorted(bids.items()):
        row = {"pool": pool, "made_at": now, "bids": None if found is None else Json(found)}
        tx.execute(QUERIES["put_bids"], row)
