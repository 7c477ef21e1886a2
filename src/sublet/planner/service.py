"""The live planner: load what was seen, decide what may be sold, keep the plan."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from sublet.planner.plan import Model, Policy, learn
from sublet.planner.prospect import HISTORY_SECONDS, WHY, Because, Lending, Prospect, prospect

log = logging.getLogger(__name__)

_HISTORY: Final = timedelta(seconds=HISTORY_SECONDS)
# Longer than any plan looks back: for whoever asks later how a month was.
_KEPT: Final = timedelta(days=100)
_FORGET_EVERY: Final = timedelta(hours=1)
# A model is good for a day; of a pool that is young, for an eighth of what is known of it.
_LEARN_EVERY_SECONDS: Final = 86_400
_YOUNG: Final = 8
# Learning takes seconds a pool, plans are due every five minutes: in between is time for this.
_LEARNING_SECONDS: Final = 60.0


class Planner:
    """Plans every pool from its history, which it reads once and then keeps up to date."""

    def __init__(self, db: Database, *, confidence: float) -> None:
        self._db = db
        self._confidence = confidence
        self._pools: dict[str, _Known] = {}
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
            self._pools.setdefault(name, _Known(history=History())).history.add(samples)
        known = {
            pool.name: self._pools.setdefault(pool.name, _Known(history=History()))
            for pool in pools
        }
        self._learn({pool: known[pool.name] for pool in pools}, int(now.timestamp()))
        plans = {pool.name: self._plan(pool, known[pool.name], now) for pool in pools}
        with self._db.transaction() as tx:
            documents = {name: document(plan) for name, plan in plans.items()}
            store.put_plans(tx, documents, now=now)
        self._forget(now)
        return plans

    def _learn(self, pools: Mapping[Pool, "_Known"], now: int) -> None:
        """Learn of those pools that it is time for, the longest not learnt of first."""
        until = time.monotonic() + _LEARNING_SECONDS
        due = [(known.learnt_at, pool.name, pool, known) for pool, known in pools.items()]
        for _, _, pool, known in sorted(due, key=lambda one: one[:2]):
            if time.monotonic() > until:
                return
            curve = known.history.curve(until=now)
            age = now - known.learnt_at
            if len(curve) and age >= min(_LEARN_EVERY_SECONDS, (now - curve.start) // _YOUNG):
                said = pool.policy
                policy = Policy(
                    confidence=said.firm_confidence or self._confidence,
                    notice_seconds=said.notice_seconds,
                )
                known.model = learn(curve, policy)
                known.learnt_at = now

    def _plan(self, pool: Pool, known: "_Known", now: datetime) -> Prospect:
        lending = Lending(lendable=pool.policy.lendable, limit=pool.policy.lending_limit)
        instant = int(now.timestamp())
        curve = known.history.curve(until=instant)
        plan = prospect(curve, known.model, now=instant, lending=lending)
        log.info(
            "surplus.planned",
            extra={
                "pool": pool.name,
                "firm": dict(plan.firm),
                "interruptible": plan.interruptible,
                "reserve": plan.reserve,
                "reasons": [because.reason for because in plan.because],
            },
        )
        return plan

    def _forget(self, now: datetime) -> None:
        if self._forgot_at is None or now >= self._forgot_at + _FORGET_EVERY:
            with self._db.transaction() as tx:
                fleet.forget_samples(tx, before=now - _KEPT)
            self._forgot_at = now


@dataclass(slots=True)
class _Known:
    """What is kept in memory of a pool."""

    history: "History"
    model: Model | None = None
    learnt_at: int = 0  # seconds since the epoch; 0: never


class History:
    """A pool's samples of the last eight weeks, in memory."""

    def __init__(self) -> None:
        self._rows = np.zeros((0, 4), dtype=np.int32)  # number of the slot, GPUs, running, pending

    def add(self, samples: Samples) -> None:
        """Take in samples in order of time; those of slots known before replace them."""
        slots = np.array(samples.slots, dtype=np.int64) // _STEP
        rows = np.array([slots, samples.gpus, samples.running, samples.pending], dtype=np.int32).T
        before = self._rows[self._rows[:, 0] < rows[0, 0]]
        kept = np.concatenate([before, rows])
        self._rows = kept[kept[:, 0] > kept[-1, 0] - HISTORY_SECONDS // _STEP]

    def curve(self, *, until: int) -> Curve:
        """Return the samples of slots that start before `until` as a curve."""
        rows = self._rows[self._rows[:, 0] < -(-until // _STEP)]
        if not len(rows):
            nothing = np.zeros(0)
            return Curve(
                start=until, step_seconds=_STEP, total=nothing, running=nothing, pending=nothing
            )
        return on_grid(
            rows[:, 0].astype(np.int64) * _STEP,
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
        "reasons": [_reason(because) for because in plan.because],
        "later": {f"{hours}h": list(counts) for hours, counts in plan.later.items()},
        "known_hours": round(plan.known_seconds / 3_600, 2),
        "known_share": round(plan.known_share, 4),
    }


def _reason(because: Because) -> dict[str, Any]:
    windows = [f"{hours}h" for hours in because.hours]
    return {"reason": because.reason.value, "windows": windows, "why": WHY[because.reason]}
