"""The live planner: load what was seen, decide what may be sold, keep the plan."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np

from sublet.core.db import Database
from sublet.fleet import store as fleet
from sublet.fleet.demand import SLOT
from sublet.fleet.pool import Pool
from sublet.fleet.store import Samples
from sublet.planner import store
from sublet.planner.curve import Curve, on_grid
from sublet.planner.prospect import HISTORY_SECONDS, WHY, Policy, Prospect, prospect

log = logging.getLogger(__name__)

_HISTORY: Final = timedelta(seconds=HISTORY_SECONDS)
# Longer than any plan looks back: for whoever asks later how a month was.
_KEPT: Final = timedelta(days=100)
_FORGET_EVERY: Final = timedelta(hours=1)


class Planner:
    """Plans every pool from its history, which it reads once and then keeps up to date."""

    def __init__(self, db: Database, *, confidence: float) -> None:
        self._db = db
        self._confidence = confidence
        self._histories: dict[str, History] = {}
        self._read_until: datetime | None = None
        self._forgot_at: datetime | None = None

    def plan(self, *, now: datetime) -> dict[str, Prospect]:
        """Plan every pool and keep the plans.

        Raises:
            Unavailable: the database did not answer.
        """
        since = now - _HISTORY if self._read_until is None else self._read_until - SLOT
        with self._db.transaction() as tx:
            pools = fleet.list_pools(tx)
            news = fleet.list_samples(tx, since=since)
        self._read_until = now  # a sample may still be joined to until its slot is over
        for name, samples in news.items():
            self._histories.setdefault(name, History()).add(samples)
        plans = {pool.name: self._plan(pool, now) for pool in pools}
        with self._db.transaction() as tx:
            documents = {name: document(plan) for name, plan in plans.items()}
            store.put_plans(tx, documents, now=now)
        self._forget(now)
        return plans

    def _plan(self, pool: Pool, now: datetime) -> Prospect:
        policy = Policy(
            confidence=self._confidence, lendable=pool.lendable, lending_limit=pool.lending_limit
        )
        instant = int(now.timestamp())
        curve = self._histories.setdefault(pool.name, History()).curve(until=instant)
        plan = prospect(curve, now=instant, policy=policy)
        log.info(
            "surplus.planned",
            extra={
                "pool": pool.name,
                "firm": dict(plan.firm),
                "interruptible": plan.interruptible,
                "reserve": plan.reserve,
                "reasons": list(plan.reasons),
            },
        )
        return plan

    def _forget(self, now: datetime) -> None:
        if self._forgot_at is None or now >= self._forgot_at + _FORGET_EVERY:
            with self._db.transaction() as tx:
                fleet.forget_samples(tx, before=now - _KEPT)
            self._forgot_at = now


class History:
    """A pool's samples of the last four weeks, in memory."""

    def __init__(self) -> None:
        self._rows = np.zeros((0, 4), dtype=np.int64)  # slot, GPUs, running, pending

    def add(self, samples: Samples) -> None:
        """Take in samples in order of time; those of slots known before replace them."""
        rows = np.array(
            [samples.slots, samples.gpus, samples.running, samples.pending], dtype=np.int64
        ).T
        before = self._rows[self._rows[:, 0] < rows[0, 0]]
        kept = np.concatenate([before, rows])
        self._rows = kept[kept[:, 0] > kept[-1, 0] - HISTORY_SECONDS]

    def curve(self, *, until: int) -> Curve:
        """Return the samples of slots that start before `until` as a curve."""
        rows = self._rows[self._rows[:, 0] < until]
        if not len(rows):
            nothing = np.zeros(0)
            return Curve(
                start=until, step_seconds=_STEP, total=nothing, running=nothing, pending=nothing
            )
        return on_grid(
            rows[:, 0],
            rows[:, 1].astype(np.float64),
            rows[:, 2].astype(np.float64),
            rows[:, 3].astype(np.float64),
            step_seconds=_STEP,
        )


_STEP: Final = int(SLOT.total_seconds())


def document(plan: Prospect) -> dict[str, Any]:
    """Return a plan as JSON's values, as it is kept and as the API shows it."""
    return {
        "as_of": f"{datetime.fromtimestamp(plan.as_of, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "gpus": plan.gpus,
        "demand": plan.demand,
        "firm": {f"{hours}h": count for hours, count in plan.firm.items()},
        "interruptible": plan.interruptible,
        "reserve": plan.reserve,
        "band": [
            {
                "ahead_seconds": band.ahead_seconds,
                "demand": {f"{quantile:g}": count for quantile, count in band.demand.items()},
            }
            for band in plan.band
        ],
        "reasons": [{"reason": reason.value, "why": WHY[reason]} for reason in plan.reasons],
        "known_hours": round(plan.known_seconds / 3_600, 2),
        "known_share": round(plan.known_share, 4),
    }
